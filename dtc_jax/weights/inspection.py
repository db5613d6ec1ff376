"""What an inspection finds, and how it is told to people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtc_jax.weights.tensors import TensorSource


@dataclass(frozen=True)
class Part:
    """One network, or a file in which none was found.

    Attributes:
        path: Where it is.
        network: What it is, or "unknown".
        layout: How it is spelled there.
        tensors: How many there are.
        parameters: Numbers in them.
        dtypes: How many tensors there are of each type.
        reason: By what it was recognised, and what is assumed.
        problem: What is missing, unexpected or misshapen, or why nothing was recognised; empty if all is well.
    """

    path: Path
    network: str
    layout: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    reason: str
    problem: str


@dataclass(frozen=True)
class Inspection:
    """What is at a path.

    Attributes:
        path: The file or folder.
        kind: "file", "folder of a network", "folder of several networks", "exported folder", "model folder" or "run
            folder".
        parts: Its networks.
        others: Tensors of no network that is known: how many there are by the first word of their names.
        details: What else is to be said of the whole, e.g. the experiment's name.
        missing: Files beside the networks' weights that it needs and lacks.
    """

    path: Path
    kind: str
    parts: Sequence[Part]
    others: Mapping[str, int]
    details: str = ""
    missing: Sequence[str] = ()


def make_part(
    path: Path, network: str, layout: str, source: TensorSource, names: Iterable[str], reason: str, problem: str
) -> Part:
    """A `Part` with the tensors of these names counted."""
    names = list(names)
    parameters = sum(math.prod(source.shape(name)) for name in names)
    dtypes = Counter(source.dtype(name).name for name in names)
    return Part(path, network, layout, len(names), parameters, dict(dtypes), reason, problem)


def absent_part(path: Path, network: str, problem: str) -> Part:
    """A `Part` that ought to be there and is not, or cannot be read."""
    return Part(path, network, "", 0, 0, {}, "", problem)


def describe(inspection: Inspection) -> str:
    """A few lines of text for people."""
    lines = [f"{inspection.path}: {inspection.kind}" + (f", {inspection.details}" if inspection.details else "")]
    for part in inspection.parts:
        lines += _describe_part(part, inspection.path)
    if inspection.others:
        listed = ", ".join(f"{word}* ({count})" for word, count in inspection.others.items())
        lines.append(f"  {sum(inspection.others.values())} tensors of no network that is known: {listed}")
    if inspection.missing:
        lines.append(f"  missing files: {', '.join(inspection.missing)}")
    return "\n".join(lines)


def _describe_part(part: Part, whole: Path) -> list[str]:
    lines = [f"  {part.network}"]
    if part.tensors:
        types = ", ".join(
            f"{name}" if len(part.dtypes) == 1 else f"{count} {name}" for name, count in part.dtypes.items()
        )
        size = f"{part.tensors} tensors, {part.parameters:,} parameters, {types}"
        lines = [f"  {part.network}: {part.layout}; {size}" if part.layout else f"  {part.network}: {size}"]
    if part.path != whole:
        lines.append(f"    in {part.path}")
    lines += [f"    by {part.reason}"] if part.reason else []
    return [*lines, f"    {part.problem}" if part.problem else "    complete"]
