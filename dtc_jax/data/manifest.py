"""Manifests: many cases in one JSONL file, the same schema for sampling, data sets and evaluation.

One JSON object a line: `id`, `scene`, `mask` or `box` ([x0, y0, x1, y1], exclusive ends), `reference`, and
optionally `truth`, `category`, `split`, `seed`. Paths are relative to the manifest.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtc_jax.data.images import InputError

_FIELDS = {"id", "scene", "mask", "box", "reference", "truth", "category", "split", "seed"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of a manifest; paths are resolved."""

    id: str
    """Unique in the manifest and fit for a file's name."""
    scene: Path
    reference: Path
    mask: Path | None = None
    box: tuple[int, int, int, int] | None = None
    truth: Path | None = None
    category: str | None = None
    split: str | None = None
    seed: int | None = None
    where: str = ""
    """Manifest and line, for messages."""


def read_manifest(path: str | os.PathLike[str]) -> list[Case]:
    """Read and check a manifest; images are looked for but not opened.

    Raises:
        InputError: names the manifest's line and what is wrong with it.
    """
    manifest = Path(path)
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"manifest {manifest}: cannot be read ({reason})") from None
    cases: list[Case] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"manifest {manifest}, line {number}"
        case = _parse(line, manifest.parent, where)
        if case.id in seen:
            raise InputError(f"{where}: id {case.id!r} was used before, in {seen[case.id]}")
        seen[case.id] = f"line {number}"
        cases.append(case)
    if not cases:
        raise InputError(f"manifest {manifest}: has no cases; write one JSON object a line")
    return cases


def _parse(line: str, folder: Path, where: str) -> Case:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not a JSON object")
    entry = {key: value for key, value in entry.items() if value is not None}
    if unknown := sorted(set(entry) - _FIELDS):
        raise InputError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    for field in ("id", "scene", "reference"):
        if field not in entry:
            raise InputError(f"{where}: {field!r} is missing")
    if ("mask" in entry) == ("box" in entry):
        raise InputError(f"{where}: give 'mask' or 'box', one of the two")
    name = str(entry["id"])
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise InputError(f"{where}: id {name!r} cannot be a file's name")
    paths = {field: _path(entry[field], folder, field, where) for field in ("scene", "reference")}
    optional = {field: _path(entry[field], folder, field, where) for field in ("mask", "truth") if field in entry}
    return Case(
        id=name,
        **paths,
        **optional,
        box=_box(entry["box"], where) if "box" in entry else None,
        category=str(entry["category"]) if "category" in entry else None,
        split=str(entry["split"]) if "split" in entry else None,
        seed=_seed(entry["seed"], where) if "seed" in entry else None,
        where=where,
    )


def _path(value: Any, folder: Path, field: str, where: str) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {field!r} must be a path")
    path = folder / value
    if not path.is_file():
        raise InputError(f"{where}: {field} {path}: no such file")
    return path


def _box(value: Any, where: str) -> tuple[int, int, int, int]:
    if not (isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)):
        raise InputError(f"{where}: 'box' must be four whole numbers [x0, y0, x1, y1]")
    return value[0], value[1], value[2], value[3]


def _seed(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise InputError(f"{where}: 'seed' must be a whole number from 0 to {2**32 - 1}")
    return value
