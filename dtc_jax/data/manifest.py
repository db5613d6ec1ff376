"""Manifests: many cases in one JSONL file, the same schema for sampling, data sets and evaluation.

One JSON object a line: `id`, `scene`, `mask` or `box` ([x0, y0, x1, y1], exclusive ends), `reference` (not for a model
that is tuned on one product), and optionally `truth`, `category`, `split`, `seed`. Paths are relative to the manifest.
A manifest may lie on a bucket (`gs://`, `s3://`, or whatever fsspec opens), and the paths in it may be such URIs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtc_jax.data.images import InputError
from dtc_jax.data.locations import Location, LocationError, is_remote, read_bytes

_FIELDS = {"id", "scene", "mask", "box", "reference", "truth", "category", "split", "seed"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of a manifest; paths are resolved."""

    id: str
    """Unique in the manifest and fit for a file's name."""
    scene: Location
    reference: Location | None
    mask: Location | None = None
    box: tuple[int, int, int, int] | None = None
    truth: Location | None = None
    category: str | None = None
    split: str | None = None
    seed: int | None = None
    where: str = ""
    """Manifest and line, for messages."""


def read_manifest(path: str | os.PathLike[str], check_files: bool = True, references: bool = True) -> list[Case]:
    """Read and check a manifest; images are looked for but not opened.

    Args:
        path: the manifest, local or a URI.
        check_files: a local image that is not there is an error. Images on a bucket are not looked for.
        references: every case must have one; otherwise none may.

    Raises:
        InputError: names the manifest's line and what is wrong with it.
    """
    return [parse_case(line, path, number, check_files, references) for number, line in manifest_lines(path)]


def manifest_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a manifest that hold a case, with their numbers from 1; ids are checked to be unique.

    Raises:
        InputError: it cannot be read, has no cases, or uses an id twice.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")  # editors on Windows put a mark before the text
    except UnicodeDecodeError:
        raise InputError(f"manifest {path}: cannot be read (not UTF-8 text)") from None
    except LocationError as error:
        raise InputError(f"manifest {path}: cannot be read ({error})") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name = str(_entry(line, _where(path, number)).get("id"))
        if name in seen:
            raise InputError(f"{_where(path, number)}: id {name!r} was used before, in line {seen[name]}")
        seen[name] = number
        yield number, line
    if not seen:
        raise InputError(f"manifest {path}: has no cases; write one JSON object a line")


def parse_case(
    line: str, path: str | os.PathLike[str], number: int, check_files: bool = True, references: bool = True
) -> Case:
    """One line of the manifest at `path`; see `read_manifest`."""
    where = _where(path, number)
    folder = str(path).rpartition("/")[0] if is_remote(path) else Path(path).parent
    return _parse(_entry(line, where), folder, where, check_files, references)


def _where(path: str | os.PathLike[str], number: int) -> str:
    return f"manifest {os.fspath(path)}, line {number}"


def _entry(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise InputError(f"{where}: not a JSON object (its brackets are nested too deeply)") from None
    except ValueError:
        raise InputError(f"{where}: cannot be read (a number has too many digits)") from None
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not a JSON object")
    for field, value in entry.items():
        # JSON can name half of a character (\ud800), which no file name and no record can hold.
        if isinstance(value, str) and not _is_whole(value):
            raise InputError(f"{where}: {field!r} is {value!r}, which cannot be written as UTF-8; mend the text")
    return {key: value for key, value in entry.items() if value is not None}


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(entry: dict[str, Any], folder: Location, where: str, check_files: bool, references: bool) -> Case:
    if unknown := sorted(set(entry) - _FIELDS):
        raise InputError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    for field in ("id", "scene", *(["reference"] if references else [])):
        if field not in entry:
            raise InputError(f"{where}: {field!r} is missing")
    if not references and "reference" in entry:
        raise InputError(
            f"{where}: 'reference': this checkpoint paints the one product that it was tuned on; leave it out"
        )
    if ("mask" in entry) == ("box" in entry):
        raise InputError(f"{where}: give 'mask' or 'box', one of the two")
    name = str(entry["id"])
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise InputError(f"{where}: id {name!r} cannot be a file's name")

    def path(field: str) -> Location:
        return _path(entry[field], folder, field, where, check_files)

    return Case(
        id=name,
        scene=path("scene"),
        reference=path("reference") if references else None,
        mask=path("mask") if "mask" in entry else None,
        truth=path("truth") if "truth" in entry else None,
        box=_box(entry["box"], where) if "box" in entry else None,
        category=str(entry["category"]) if "category" in entry else None,
        split=str(entry["split"]) if "split" in entry else None,
        seed=_seed(entry["seed"], where) if "seed" in entry else None,
        where=where,
    )


def _path(value: Any, folder: Location, field: str, where: str, check: bool) -> Location:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {field!r} must be a path")
    if is_remote(value):
        return value
    if isinstance(folder, str):
        return f"{folder}/{value}"
    path = folder / value
    if check and not os.path.isfile(path):
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
