"""From numbers per product to rows with intervals, and to a table that a person can paste."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dtc_jax.data.images import InputError
from dtc_jax.evaluation.image_metrics import Metric
from dtc_jax.evaluation.metrics import bootstrap_interval

MASK_KINDS = ("all", "fine", "box")
"""Which products a figure is over: all, those with a fine mask, those with a box mask."""


class Scores(NamedTuple):
    """One number per product and measure, each float64 [N]."""

    easy_retrieval: Float[np.ndarray, "n"]
    """1 where the own truth is nearer than all easy distractors, else 0."""
    hard_retrieval: Float[np.ndarray, "n"]
    """1 where the own truth is nearer than all hard distractors, else 0."""
    ssim: Float[np.ndarray, "n"]
    """SSIM in the mask."""
    psnr: Float[np.ndarray, "n"]
    """PSNR in the mask in dB."""


def concatenate_scores(parts: list[Scores]) -> Scores:
    """Join batches."""
    return Scores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def summarize(scores: Scores, is_box: Bool[np.ndarray, "n"], seed: int) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over products, for all masks, fine masks and box masks.

    Args:
        scores: numbers per product.
        is_box: where the mask is a bounding box.
        seed: of the bootstrap.

    Returns:
        `{"all" | "fine" | "box": {"n": int, measure: {"mean", "low", "high"}}}`; a kind without products is left out.
    """
    chosen = {"all": np.ones_like(is_box), "fine": ~is_box, "box": is_box}
    summary: dict[str, Any] = {}
    for kind, where in chosen.items():
        if not where.any():
            continue
        summary[kind] = {"n": int(where.sum())}
        for measure, values in scores._asdict().items():
            mean, low, high = bootstrap_interval(values[where], seed)
            summary[kind][measure] = {"mean": mean, "low": low, "high": high}
    return summary


def difference(scores: Scores, other: Scores) -> Scores:
    """Paired differences, product by product: `scores` minus `other`."""
    return Scores(*(a - b for a, b in zip(scores, other, strict=True)))


def _cell(figure: Mapping[str, float], digits: int) -> str:
    return f"{figure['mean']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def markdown_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The summaries of `summarize` by row name as a Markdown table, one line per row and kind of mask."""
    header = ["", "masks", "n", "easy retrieval", "hard retrieval", "SSIM in mask", "PSNR in mask (dB)"]
    lines = [header]
    for name, summary in rows.items():
        for kind in MASK_KINDS:
            if kind not in summary:
                continue
            figures = summary[kind]
            cells = [_cell(figures[measure], 3) for measure in ("easy_retrieval", "hard_retrieval", "ssim")]
            lines.append([name, kind, str(figures["n"]), *cells, _cell(figures["psnr"], 2)])
    return aligned_table(lines)


def aligned_table(lines: list[list[str]]) -> str:
    """Cells as a Markdown table whose columns are aligned; the first line is the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def figures_table(columns: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Metric]) -> str:
    """Figures of one set of results or several as a Markdown table: a line per metric, with the better direction.

    Args:
        columns: By the set's name, {metric: {"mean" or "value", "low", "high", "n"}}.
        metrics: In the order of the lines; those that no set has are left out.
    """
    lines = [["metric", "n", *columns]]
    for name, metric in metrics.items():
        figures = [column[name] for column in columns.values() if name in column]
        if not figures:
            continue
        count = figures[0]["n"]
        cells = [_figure_cell(column[name], metric.digits) if name in column else "" for column in columns.values()]
        counted = " / ".join(map(str, count)) if isinstance(count, list) else str(count)
        lines.append([f"{metric.label} {'↑' if metric.higher_is_better else '↓'}", counted, *cells])
    return aligned_table(lines)


def _figure_cell(figure: Mapping[str, Any], digits: int) -> str:
    value = figure["value"] if "value" in figure else figure["mean"]
    if figure["low"] is None:
        return f"{value:.{digits}f}"
    return _cell({"mean": value, "low": figure["low"], "high": figure["high"]}, digits)


def check_json_output(path: Path) -> None:
    """Check that a JSON file can be written.

    Raises:
        InputError: a folder in its place, or none to hold it.
    """
    if path.is_dir():
        raise InputError(f"output {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"output {path}: no such folder: {path.parent}; make it first")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, beside its destination and rename it.

    Raises:
        InputError: it cannot be written.
    """
    try:
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        scratch.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(scratch, path)
    except OSError as error:
        raise InputError(f"output {path}: cannot be written ({error.strerror})") from None
