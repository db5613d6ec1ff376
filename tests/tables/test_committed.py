"""The table in the documentation is what its committed figures make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dtc_jax.tables.budgets import BUDGETS
from dtc_jax.tables.command import main
from dtc_jax.tables.measure import load_judge
from dtc_jax.weights.fingerprint import fingerprint

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "results" / "table-cpu"


def test_the_page_is_made_of_the_committed_figures(tmp_path: Path) -> None:
    runs = [path.stem.split("-seed") for path in FIGURES.glob("*-seed*.json")]
    seeds = sorted({seed for _, seed in runs})
    experiments = [name for name in BUDGETS["cpu"].experiments if [name, seeds[0]] in runs]
    assert len(runs) == len(seeds) * len(experiments)
    words = ["cpu", "--figures", str(FIGURES), "--experiments", *experiments, "--seeds", *seeds]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    page = (DOCS / "results.md").read_text()
    shown = page.split("<!-- table-cpu -->\n")[1].split("<!-- end of table-cpu -->")[0]
    assert shown == (tmp_path / "table.md").read_text()


def test_the_committed_judge_is_the_one_that_measured() -> None:
    _, vgg = load_judge(FIGURES / "judge")
    used = {json.loads(path.read_text())["protocol"]["judge_weights"] for path in FIGURES.glob("*.json")}
    assert used == {fingerprint({"vgg": vgg})} and np.isfinite(vgg["features_0"]["kernel"]).all()
