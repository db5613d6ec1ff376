"""From figures of single runs to rows with their spread over the seeds, and to a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dtc_jax.evaluation.fidelity import BASELINES
from dtc_jax.evaluation.report import aligned_table
from dtc_jax.tables.budgets import BEST_PAINT_BY_EXAMPLE, DIFFUSE_TO_CHOOSE, ROWS
from dtc_jax.tables.measure import TRUTH

COLUMNS: Mapping[str, tuple[str, int]] = {
    "hard_retrieval": ("hard retrieval ↑", 3),
    "easy_retrieval": ("easy retrieval ↑", 3),
    "ssim": ("SSIM in mask ↑", 3),
    "psnr": ("PSNR in mask ↑", 2),
    "feature_distance": ("feature distance ↓", 3),
    "similarity": ("similarity ↑", 1),
    "frechet": ("Frechet distance ↓", 3),
}
"""Heading and digits of each figure, in the table's order."""

BASELINE_LABELS = {"naive_paste": "naive paste", "stretched_paste": "stretched paste", TRUTH: "the truth"}

REQUIRED_LEAD = 0.2
"""In hard retrieval, of Diffuse to Choose over the best Paint by Example."""


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean of the seeds, the lowest and the highest, and each: {"mean", "low", "high", "seeds"}."""
    own = [float(value) for value in values]
    return {"mean": float(np.mean(own)), "low": min(own), "high": max(own), "seeds": own}


def make_rows(
    figures: Mapping[str, Mapping[str, float]], runs: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures by row: every experiment over its seeds, then what needs no training.

    Args:
        figures: {run or baseline: {figure: value}}, of one sampling.
        runs: {experiment: its runs, in the seeds' order}.
    """
    members = {**runs, **{name: (name,) for name in (*BASELINES, TRUTH)}}
    return {
        row: {figure: over_seeds([figures[name][figure] for name in names]) for figure in figures[names[0]]}
        for row, names in members.items()
    }


def lead(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], figure: str = "hard_retrieval") -> dict[str, Any] | None:
    """By how much Diffuse to Choose is ahead of the best Paint by Example, seed by seed; None without both.

    Returns:
        `over_seeds` of the differences, `spread` (the larger range over the seeds of the two rows), and `holds`: the
        mean difference is at least `REQUIRED_LEAD` and larger than the spread, which takes several seeds.
    """
    if DIFFUSE_TO_CHOOSE not in rows or BEST_PAINT_BY_EXAMPLE not in rows:
        return None
    ours, other = rows[DIFFUSE_TO_CHOOSE][figure], rows[BEST_PAINT_BY_EXAMPLE][figure]
    differences = over_seeds([a - b for a, b in zip(ours["seeds"], other["seeds"], strict=True)])
    spread = max(one["high"] - one["low"] for one in (ours, other))
    holds = differences["mean"] >= REQUIRED_LEAD and differences["mean"] > spread
    return {"figure": figure, **differences, "spread": spread, "holds": holds and len(ours["seeds"]) > 1}


def rows_table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Rows as a Markdown table: mean over the seeds, and lowest to highest where there are several."""
    lines = [["", "paper", *(heading for heading, _ in COLUMNS.values())]]
    for name, figures in rows.items():
        row = ROWS.get(name)
        cells = [_cell(figures[figure], digits) if figure in figures else "" for figure, (_, digits) in COLUMNS.items()]
        lines.append([row.label if row else BASELINE_LABELS[name], row.paper if row else "", *cells])
    return aligned_table(lines)


def _cell(figure: Mapping[str, Any], digits: int) -> str:
    if len(figure["seeds"]) == 1:
        return f"{figure['mean']:.{digits}f}"
    return f"{figure['mean']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def lead_line(ahead: Mapping[str, Any]) -> str:
    """The claim in a sentence."""
    seeds = ", ".join(f"{value:+.3f}" for value in ahead["seeds"])
    if len(ahead["seeds"]) == 1:
        return (
            f"Diffuse to Choose minus the best Paint by Example, hard retrieval: {seeds}. Of one seed: how much seeds "
            "differ, and so whether this holds, is not known."
        )
    return (
        f"Diffuse to Choose minus the best Paint by Example, hard retrieval: {ahead['mean']:+.3f} (seeds: {seeds}); "
        f"largest range over the seeds of either: {ahead['spread']:.3f}. A lead of {REQUIRED_LEAD} that is more than "
        f"that range: {'yes' if ahead['holds'] else 'NO'}."
    )


def choose_pictures(found: Sequence[bool], each: int) -> list[int]:
    """The first products that were told from their distractors, and the first that were not, as many of each."""
    told = [index for index, one in enumerate(found) if one][:each]
    missed = [index for index, one in enumerate(found) if not one][:each]
    return [*told, *missed]
