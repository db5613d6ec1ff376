"""The tables in the documentation are what their committed figures make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.tables.budgets import BUDGETS
from dtc_jax.tables.command import main
from dtc_jax.tables.measure import load_judge
from dtc_jax.weights.fingerprint import fingerprint

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "results" / "table-cpu"
DECIDING = BUDGETS["cpu"].experiments
DESIGN = ("tiny", "tiny_pooled", "tiny_fixed_time", "tiny_contain", "tiny_token_dropout")


@pytest.mark.parametrize(
    ("part", "experiments", "seeds"), [("table-cpu", DECIDING, ("0", "1", "2")), ("design-cpu", DESIGN, ("0",))]
)
def test_the_page_is_made_of_the_committed_figures(
    tmp_path: Path, part: str, experiments: tuple[str, ...], seeds: tuple[str, ...]
) -> None:
    # Those that are not there would be trained.
    assert all((FIGURES / f"{row}-seed{seed}.json").is_file() for row in experiments for seed in seeds)
    words = ["cpu", "--figures", str(FIGURES), "--experiments", *experiments, "--seeds", *seeds]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    page = (DOCS / "results.md").read_text()
    shown = page.split(f"<!-- {part} -->\n")[1].split(f"<!-- end of {part} -->")[0]
    assert shown == (tmp_path / "table.md").read_text()


def test_no_committed_figures_are_left_out_of_the_page() -> None:
    shown = {f"{row}-seed{seed}" for row in DECIDING for seed in (0, 1, 2)} | {f"{row}-seed0" for row in DESIGN}
    assert {path.stem for path in FIGURES.glob("*-seed*.json")} == shown


def test_the_committed_judge_is_the_one_that_measured() -> None:
    _, vgg = load_judge(FIGURES / "judge")
    used = {json.loads(path.read_text())["protocol"]["judge_weights"] for path in FIGURES.glob("*.json")}
    assert used == {fingerprint({"vgg": vgg})} and np.isfinite(vgg["features_0"]["kernel"]).all()
