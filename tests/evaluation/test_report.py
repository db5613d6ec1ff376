"""Rows with intervals and their table."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax.evaluation.report import Scores, concatenate_scores, difference, markdown_table, summarize


def _scores(count: int) -> Scores:
    values = np.arange(count, dtype=np.float64)
    return Scores(easy_retrieval=values % 2, hard_retrieval=values * 0, ssim=values / count, psnr=values + 10)


def test_summarize_keeps_fine_and_box_apart() -> None:
    is_box = np.array([False, True] * 4)
    summary = summarize(_scores(8), is_box, seed=0)
    assert [summary[kind]["n"] for kind in ("all", "fine", "box")] == [8, 4, 4]
    assert summary["fine"]["easy_retrieval"]["mean"] == 0
    assert summary["box"]["easy_retrieval"] == {"mean": 1, "low": 1, "high": 1}
    assert summary["all"]["psnr"]["mean"] == pytest.approx(13.5)
    assert summary["all"]["psnr"]["low"] < 13.5 < summary["all"]["psnr"]["high"]
    assert "box" not in summarize(_scores(3), np.zeros(3, bool), seed=0)


def test_difference_is_paired() -> None:
    minus = difference(_scores(4), _scores(4)._replace(psnr=np.zeros(4)))
    np.testing.assert_array_equal(minus.psnr, [10, 11, 12, 13])
    np.testing.assert_array_equal(minus.ssim, 0)


def test_markdown_table() -> None:
    scores = concatenate_scores([_scores(4), _scores(4)])
    table = markdown_table({"model": summarize(scores, np.zeros(8, bool), seed=0)})
    lines = table.splitlines()
    assert len(lines) == 4  # header, rule, all, fine
    assert len({len(line) for line in lines}) == 1
    assert "| model | all " in lines[2]
    assert "11.50 [" in lines[2]
    assert "0.000 [0.000, 0.000]" in lines[3]
