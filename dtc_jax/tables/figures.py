"""Figures of single runs in files: a table may be put together from several machines, or from several nights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dtc_jax.data.images import InputError
from dtc_jax.evaluation.fidelity import BASELINES
from dtc_jax.evaluation.report import write_json
from dtc_jax.tables.measure import TRUTH, Measured
from dtc_jax.tables.train_runs import Run

_WITHOUT_TRAINING = "without_training"
LABEL_FIGURES = ("feature_distance", "similarity", "frechet")
"""Those that one judge alone can compare."""


def figures_file(folder: Path, name: str) -> Path:
    """Where a run's figures are."""
    return folder / f"{name}.json"


def write_figures(folder: Path, measured: Measured, descriptions: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a file for each run that was measured, and one for the rows that need no training.

    Raises:
        InputError: a file that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"figures {folder}: cannot be made ({error.strerror})") from None
    how = {"protocol": measured.protocol, "measured": {"device": measured.device, "seconds": measured.seconds}}
    others = (*BASELINES, TRUTH)
    rows = {name: own for name, own in next(iter(measured.figures.values())).items() if name in others}
    write_json(figures_file(folder, _WITHOUT_TRAINING), {"figures": rows, **how})
    for name, run in descriptions.items():
        figures = {sampling: table[name] for sampling, table in measured.figures.items()}
        found = {sampling: of_runs[name] for sampling, of_runs in measured.found.items()}
        write_json(figures_file(folder, name), {"figures": figures, "run": run, **how, "found": found})


def read_figures(folder: Path, name: str) -> dict[str, Any]:
    """What `write_figures` wrote of a run.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    path = figures_file(folder, name)
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored["figures"], dict) or not isinstance(stored["protocol"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"figures {path}: not the figures of a run; remove it, and it is measured again") from None
    return dict(stored)


def gather_figures(folder: Path, runs: Iterable[Run], samplings: Iterable[str]) -> dict[str, Any]:
    """The figures of all runs, and what they were measured with.

    Args:
        folder: Of the files.
        runs: All of the table's.
        samplings: All of the table's.

    Returns:
        `figures` ({sampling: {run or baseline: {figure: value}}}), `runs` ({run: how it was trained and measured}),
        `protocol`, and `judges`, how many different ones there were: with several, the figures that only one can
        compare are left out.

    Raises:
        InputError: a run that was trained with other flags than the table's, or measured by another protocol.
    """
    without = read_figures(folder, _WITHOUT_TRAINING)
    protocol = without["protocol"]
    judges = {protocol["judge_weights"]}
    figures: dict[str, dict[str, Any]] = {sampling: {} for sampling in samplings}
    described: dict[str, Any] = {}
    for run in runs:
        stored = read_figures(folder, run.name)
        where = f"figures {figures_file(folder, run.name)}"
        if stored["run"]["flags"] != list(run.flags):
            raise InputError(f"{where}: of a run with other flags ({' '.join(stored['run']['flags'])}); remove it")
        judges.add(stored["protocol"]["judge_weights"])
        for name, value in stored["protocol"].items():
            if name != "judge_weights" and value != protocol.get(name):
                raise InputError(f"{where}: measured by another protocol ({name}: {value}, not {protocol.get(name)})")
        for sampling in figures:
            figures[sampling][run.name] = stored["figures"][sampling]
        described[run.name] = {**stored["run"], "measured": stored["measured"]}
    for sampling in figures:
        figures[sampling] |= without["figures"]
        if len(judges) > 1:
            figures[sampling] = {
                name: {figure: value for figure, value in own.items() if figure not in LABEL_FIGURES}
                for name, own in figures[sampling].items()
            }
    return {"figures": figures, "runs": described, "protocol": protocol, "judges": len(judges)}
