"""The command line that looks a data set over before training: counts, sizes, what looks wrong, and a contact sheet.

    python -m dtc_jax.data.inspect data/product_pairs --output sheet.png
    python -m dtc_jax.data.inspect catalogue.jsonl --json report.json --strict

Errors of use end with exit code 2 and one line on the standard error output; with --strict, findings with exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config_base import ConfigError
from dtc_jax.data.images import InputError, check_no_input, check_output, write_image
from dtc_jax.data.inspection import BROKEN, Inspection, Reader, inspect_data, open_data
from dtc_jax.data.inspection_sheet import draw_sheet
from dtc_jax.data.printing import show

PROGRAM = "python -m dtc_jax.data.inspect"

NAMED = 8
"""Cases of a finding that are named on the screen; the JSON has them all."""


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Look a data set over: counts, sizes, broken files, odd masks and references, duplicates across splits."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A prepared data set, a manifest (a file or a URI), or an unpacked VITON-HD folder."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """PNG to write: a contact sheet with masks, largest rectangles and hints drawn in."""
    rows: int = 16
    """Cases on the sheet: up to half of them with findings, the rest evenly spread."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """JSON to write: the same, for programs, with the names of all cases that have findings."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Most cases of a split to look at, evenly spread."""
    size: int = 512
    """Height and width at which cases that are not prepared yet are looked at."""
    workers: int = os.cpu_count() or 1
    """Threads that read images."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Exit with code 1 if anything was found."""


@reports_errors(InputError, ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for findings with --strict, or 2 after an error of use."""
    arguments = parse_arguments(InspectArguments, sys.argv[1:] if argv is None else argv, PROGRAM)
    return run(arguments)


def run(arguments: InspectArguments) -> int:
    """Inspect, print, and write what was asked for; returns the exit code.

    Raises:
        UsageError, InputError, ConfigError: an option, the data or an output that cannot be used.
    """
    for name in ("rows", "workers", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    if arguments.size < 16:
        raise UsageError(f"--size must be at least 16, not {arguments.size}")
    if arguments.output is not None:
        check_output(arguments.output)
    if arguments.json is not None:
        _check_json(arguments.json)
    outputs = [path for path in (arguments.output, arguments.json) if path is not None]
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise UsageError(f"--json {arguments.json}: is the file of --output, too; name another one")
    reader = open_data(arguments.data, arguments.size)
    for path in outputs:
        _check_apart(path, reader)
    total = sum(min(len(items), arguments.limit or len(items)) for items in reader.splits.values())
    # disable=None: a bar on a terminal only.
    with tqdm(total=total, unit="case", disable=None) as bar:
        inspection = inspect_data(arguments.data, reader, arguments.limit, arguments.workers, bar.update)
    show(readable(inspection))
    if arguments.json is not None:
        _write_json(arguments.json, describe(inspection))
    if arguments.output is not None:
        write_image(arguments.output, np.asarray(draw_sheet(inspection, reader, arguments.rows)))
        show([f"sheet: {arguments.output}"])
    return 1 if arguments.strict and inspection.findings else 0


def _check_json(path: Path) -> None:
    """Raise a UsageError if there can be no JSON file at `path`."""
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:
        raise UsageError(f"--json {path}: cannot be written ({error.strerror or error}); name another file") from None
    if not has_folder:
        raise UsageError(f"--json {path}: no such folder: {path.parent}; make it first")
    if is_folder:
        raise UsageError(f"--json {path}: is a folder; name a file")


def _check_apart(path: Path, reader: Reader) -> None:
    """Raise an InputError if writing to `path` would change the data."""
    check_no_input(path, reader.files())
    whole = Path(os.path.realpath(path))
    for folder in reader.folders:
        if Path(os.path.realpath(folder)) in whole.parents:
            raise InputError(f"output {path}: lies in the data, in {folder}; name a file elsewhere")


def describe(inspection: Inspection) -> dict[str, Any]:
    """The inspection as plain data."""
    whole = [seen for seen in inspection.seen if seen.scene_look is not None]
    return {
        "data": inspection.data,
        "kind": inspection.kind,
        "description": dict(inspection.describe),
        "cases": inspection.totals,
        "inspected": len(inspection.seen),
        "scene_sizes": _range([seen.scene_size for seen in whole]),
        "reference_sizes": _range([seen.reference_size for seen in whole]),
        "mask_share": _quantiles([seen.mask_share for seen in whole]),
        "findings": {kind: {"count": len(names), "cases": names} for kind, names in inspection.findings.items()},
        "problems": {f"{seen.split}/{seen.id}": seen.problem for seen in inspection.seen if seen.problem},
    }


def readable(inspection: Inspection) -> list[str]:
    """The inspection as lines to read."""
    said = describe(inspection)
    counts = ", ".join(f"{split} {count:,}" for split, count in inspection.totals.items())
    lines = [f"{inspection.data}: {inspection.kind}", f"cases: {counts}"]
    if said["inspected"] < sum(inspection.totals.values()):
        lines[-1] += f"; {said['inspected']:,} of them inspected"
    lines += [f"{key}: {inspection.describe[key]}" for key in ("licence",) if key in inspection.describe]
    if left_out := inspection.describe.get("num_broken", 0) + inspection.describe.get("num_skipped", 0):
        lines.append(f"left out when it was built: {left_out} of {inspection.describe['cases']:,} cases")
    for name, sizes in (("scenes", said["scene_sizes"]), ("references", said["reference_sizes"])):
        if sizes:
            lines.append(f"{name}, width x height: {' ... '.join(dict.fromkeys(sizes))}")
    if share := said["mask_share"]:
        lines.append("masks, share of the window: " + " ... ".join(f"{value:.0%}" for value in share))
    for kind, names in inspection.findings.items():
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        lines.append(f"! {kind}: {len(names)}" + ("" if kind == BROKEN else f": {shown}"))
        if kind == BROKEN:
            problems = list(said["problems"].items())
            lines += [f"    {name}: {reason}" for name, reason in problems[:NAMED]]
            lines += [f"    and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    if not inspection.findings:
        lines.append("nothing looks wrong")
    return lines


def _range(sizes: list[tuple[int, int]]) -> list[str]:
    """Smallest, median and largest by area, as WIDTHxHEIGHT."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return [f"{width}x{height}" for height, width in (ordered[i] for i in _places(len(ordered)))]


def _quantiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [round(ordered[i], 4) for i in _places(len(ordered))]


def _places(count: int) -> list[int]:
    return [0, count // 2, count - 1] if count else []


def _write_json(path: Path, content: Any) -> None:
    # No part of the name: there may be no room for more.
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"output {path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
