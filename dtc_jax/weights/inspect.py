"""What a file or folder of weights is: its networks, layouts, sizes and types, what is missing and what is too much."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.detect import detect_networks
from dtc_jax.weights.layouts import Entry, Layout, Shapes, flax_shapes
from dtc_jax.weights.mapping import differences
from dtc_jax.weights.model_folder import is_model_folder, load_config_of
from dtc_jax.weights.tensors import SafetensorsFile, TensorSource, WeightsError, open_tensors


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
        kind: "file", "folder of a network", "folder of several networks", "model folder" or "run folder".
        parts: Its networks.
        others: Tensors of no network that is known: how many there are by the first word of their names.
    """

    path: Path
    kind: str
    parts: Sequence[Part]
    others: Mapping[str, int]


def inspect(path: str | os.PathLike[str], variant: str | None = None) -> Inspection:
    """Look at a file or folder; names and shapes are read, values are not.

    Args:
        path: What `open_tensors` takes, a diffusers folder of several networks, a model folder or a run folder.
        variant: Of the files in a folder, e.g. `fp16`.

    Raises:
        WeightsError: there is nothing, or it cannot be read. (That a network is not known is no error here.)
    """
    target = Path(path)
    if (target / "checkpoints").is_dir():
        inner = next((target / name for name in ("model", "frozen") if is_model_folder(target / name)), None)
        return Inspection(target, "run folder", _model_folder(inner) if inner is not None else [], {})
    if (target / "model_index.json").is_file():
        parts: list[Part] = []
        for folder in sorted(child for child in target.iterdir() if child.is_dir()):
            parts += _folder(folder, variant)
        return Inspection(target, "folder of several networks", parts, {})
    if is_model_folder(target) and not _is_published(target):
        return Inspection(target, "model folder", _model_folder(target), {})
    source = open_tensors(target, variant)
    parts, others = _networks(source)
    return Inspection(target, "folder of a network" if target.is_dir() else "file", parts, others)


def describe(inspection: Inspection) -> str:
    """A few lines of text for people."""
    lines = [f"{inspection.path}: {inspection.kind}"]
    for part in inspection.parts:
        types = ", ".join(
            f"{name}" if len(part.dtypes) == 1 else f"{count} {name}" for name, count in part.dtypes.items()
        )
        size = f"{part.tensors} tensors, {part.parameters:,} parameters, {types}"
        lines.append(f"  {part.network}: {part.layout}; {size}")
        if part.path != inspection.path:
            lines.append(f"    in {part.path}")
        lines += [f"    by {part.reason}"] if part.reason else []
        lines.append(f"    {part.problem}" if part.problem else "    complete")
    if inspection.others:
        listed = ", ".join(f"{word}* ({count})" for word, count in inspection.others.items())
        lines.append(f"  {sum(inspection.others.values())} tensors of no network that is known: {listed}")
    return "\n".join(lines)


def _is_published(folder: Path) -> bool:
    """Whether its config.json is one of diffusers or transformers and not an experiment's."""
    text = (folder / "config.json").read_text(errors="replace")
    return '"_class_name"' in text or '"model_type"' in text


def _folder(folder: Path, variant: str | None) -> list[Part]:
    names = [path.name for path in folder.iterdir()]
    if not any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names):
        return []  # a tokenizer, a scheduler
    try:
        return _networks(open_tensors(folder, variant))[0]
    except WeightsError as error:
        return [Part(folder, "unknown", "", 0, 0, {}, "", str(error))]


def _networks(source: TensorSource) -> tuple[list[Part], dict[str, int]]:
    names = source.keys()
    try:
        found = detect_networks(source)
    except WeightsError as error:
        return [_part(source.path, "unknown", "", source, names, "", str(error))], {}
    parts: list[Part] = []
    covered: set[str] = set()
    for detected in found:
        inner = detected.source
        covered |= {inner.full_name(name) for name in inner.keys()}  # noqa: SIM118
        problem = str(differences(detected.layout, inner, detected.shapes))
        parts.append(
            _part(source.path, detected.network, detected.layout.name, inner, inner.keys(), detected.reason, problem)
        )
    return parts, dict(Counter(name.split(".")[0] for name in names if name not in covered))


def _model_folder(folder: Path) -> list[Part]:
    shapes = DiffuseToChoose(load_config_of(folder).model).shapes()
    parts: list[Part] = []
    for file in sorted(folder.glob("*.safetensors")):
        source = SafetensorsFile(file)
        if file.stem in shapes:
            problem = str(differences(_FLAX, source, flax_shapes(shapes[file.stem])))
        else:
            problem = "not a network of the configuration"
        parts.append(_part(file, file.stem, _FLAX.name, source, source.keys(), "", problem))
    missing = [name for name in shapes if not (folder / f"{name}.safetensors").is_file()]
    parts += [Part(folder, name, "", 0, 0, {}, "", f"{name}.safetensors is missing") for name in missing]
    return parts


def _flax_entries(shapes: Shapes) -> list[Entry]:
    return [Entry((path,), (path,)) for path in shapes]


_FLAX = Layout("dtc-jax", _flax_entries)


def _part(
    path: Path, network: str, layout: str, source: TensorSource, names: Iterable[str], reason: str, problem: str
) -> Part:
    names = list(names)
    parameters = sum(math.prod(source.shape(name)) for name in names)
    dtypes = Counter(source.dtype(name).name for name in names)
    return Part(path, network, layout, len(names), parameters, dict(dtypes), reason, problem)
