"""Rows over seeds, the claim, and the page."""

from __future__ import annotations

import pytest

from dtc_jax.tables.budgets import BUDGETS, ROWS, SAMPLINGS
from dtc_jax.tables.report import choose_pictures, lead, lead_line, make_rows, over_seeds, rows_table
from tests.variants import experiment

RUNS = {"tiny": ("tiny-seed0", "tiny-seed1"), "tiny_no_hint": ("tiny_no_hint-seed0", "tiny_no_hint-seed1")}


def figures(ours: tuple[float, float], other: tuple[float, float]) -> dict[str, dict[str, float]]:
    of_runs = dict(zip((*RUNS["tiny"], *RUNS["tiny_no_hint"]), (*ours, *other), strict=True))
    rest = {"naive_paste": 0.3, "stretched_paste": 0.6, "truth": 1.0}
    return {name: {"hard_retrieval": value, "ssim": value / 2} for name, value in {**of_runs, **rest}.items()}


def test_rows_have_the_mean_and_the_range_of_the_seeds() -> None:
    rows = make_rows(figures((0.5, 0.7), (0.1, 0.2)), RUNS)
    assert list(rows) == ["tiny", "tiny_no_hint", "naive_paste", "stretched_paste", "truth"]
    assert rows["tiny"]["hard_retrieval"] == {"mean": 0.6, "low": 0.5, "high": 0.7, "seeds": [0.5, 0.7]}
    assert rows["naive_paste"]["ssim"] == over_seeds([0.15])
    lines = rows_table(rows).splitlines()
    assert "0.600 (0.500 to 0.700)" in lines[2] and "FiLM" in lines[2]
    assert "best Paint by Example" in lines[3] and "0.150 (0.100 to 0.200)" in lines[3]
    assert "| 0.300 " in lines[4] and "PSNR in mask ↑" in lines[0]


@pytest.mark.parametrize(
    ("ours", "other", "holds"),
    [
        ((0.5, 0.7), (0.1, 0.2), True),
        ((0.3, 0.3), (0.15, 0.15), False),  # ahead, not by enough
        ((0.2, 0.9), (0.1, 0.1), False),  # by enough, but seeds differ more
        ((0.1, 0.2), (0.5, 0.7), False),
    ],
)
def test_lead_must_be_large_and_more_than_the_spread(
    ours: tuple[float, float], other: tuple[float, float], holds: bool
) -> None:
    ahead = lead(make_rows(figures(ours, other), RUNS))
    assert ahead is not None and ahead["holds"] is holds
    assert ahead["seeds"] == pytest.approx([ours[0] - other[0], ours[1] - other[1]])
    assert lead_line(ahead).endswith("yes." if holds else "NO.")


def test_one_seed_shows_no_lead() -> None:
    single = {row: names[:1] for row, names in RUNS.items()}
    ahead = lead(make_rows(figures((0.9, 0.9), (0.1, 0.1)), single))
    assert ahead is not None and ahead["mean"] == pytest.approx(0.8) and not ahead["holds"]
    assert "+0.800. Of one seed: " in lead_line(ahead)


def test_no_lead_without_both_rows() -> None:
    own = figures((0.5, 0.7), (0.1, 0.2))
    assert lead(make_rows(own, {"tiny": RUNS["tiny"]})) is None


def test_pictures_of_successes_and_failures() -> None:
    found = [True, False, True, True, False]
    assert choose_pictures(found, 2) == [0, 2, 1, 4]
    assert choose_pictures([True, True], 2) == [0, 1]


def test_budgets_name_experiments_and_samplings_that_exist() -> None:
    for budget in BUDGETS.values():
        assert set(budget.experiments) <= set(ROWS) and set(budget.samplings) <= set(SAMPLINGS)
    assert set(BUDGETS["cpu"].experiments) == {"tiny", "tiny_addition", "tiny_no_hint", "tiny_cls_only"}
    words = dict(zip(BUDGETS["cpu"].flags[::2], BUDGETS["cpu"].flags[1::2], strict=False))
    assert int(words["--training.steps"]) * int(words["--training.batch-size"]) == 20_000
    assert len(BUDGETS["cpu"].seeds) == 3 and BUDGETS["cpu"].num_products == 128
    assert {experiment(name).model.image_size for name in ROWS} == {64}
