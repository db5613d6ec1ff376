"""Runs are measured on the same products and noise; tables are put together from their figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.initialize import initialize
from dtc_jax.tables import command
from dtc_jax.tables.budgets import BUDGETS, Budget
from dtc_jax.tables.measure import measure_runs
from dtc_jax.tables.train_runs import Run
from dtc_jax.weights.model_folder import save_model_folder
from tests.evaluation.models import save_test_model
from tests.variants import experiment

ONE_STEP = "one step, guidance 1.25"
SIZE = 64
"""As in the tests of the evaluation, whose compiled functions these share."""


def save_judge(folder: Path) -> Path:
    config: ExperimentConfig = dataclasses.replace(experiment("test"), stage="vgg")
    params = initialize(DiffuseToChoose(config.model).shapes(), jax.random.key(9))
    return save_model_folder(folder, config, {"vgg": params["vgg"]})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    made = {f"tiny-seed{seed}": save_test_model(root / f"tiny-seed{seed}", seed, SIZE) for seed in (0, 1)}
    return {**made, "again": made["tiny-seed0"], "judge": save_judge(root / "judge")}


def test_runs_are_measured_alike(folders: dict[str, Path]) -> None:
    runs = {name: folder for name, folder in folders.items() if name != "judge"}
    arguments: dict[str, Any] = {"samplings": (ONE_STEP,), "num_products": 3, "shown": ("again",), "num_shown": 2}
    together = measure_runs(runs, folders["judge"], batch_size=2, **arguments)
    figures = together.figures[ONE_STEP]
    # One model under two names has the same figures: products and noise are the same.
    assert figures["tiny-seed0"] == figures["again"] != figures["tiny-seed1"]
    assert set(figures["again"]) == {
        *("easy_retrieval", "hard_retrieval", "ssim", "psnr"),
        *("feature_distance", "similarity", "frechet"),
    }
    assert figures["again"]["frechet"] > 0 and figures["again"]["feature_distance"] > 0
    assert figures["truth"]["feature_distance"] == pytest.approx(0, abs=1e-9) and "frechet" not in figures["truth"]
    assert {"naive_paste", "stretched_paste"} < set(figures)
    told = together.found[ONE_STEP]["again"]
    assert len(told) == 3 and np.mean(told) == figures["again"]["hard_retrieval"]
    assert [set(picture["results"][ONE_STEP]) for picture in together.pictures] == [{"again"}] * 2
    shown = together.pictures[0]
    outside = shown["mask"][..., 0] == 0
    np.testing.assert_array_equal(shown["results"][ONE_STEP]["again"][outside], shown["truth"][outside])
    assert together.protocol["samplings"][ONE_STEP]["num_inference_steps"] == 1


def test_runs_of_different_sizes_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = save_test_model(tmp_path / "other", 0, 32)
    with pytest.raises(ValueError, match="one image size"):
        measure_runs({"a": folders["again"], "b": other}, folders["judge"], samplings=(ONE_STEP,), num_products=1)


def test_the_command_writes_table_page_and_sheet(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With finished runs of the smallest size in the place of those that it would train."""
    monkeypatch.setitem(
        BUDGETS,  # type: ignore[arg-type]
        "quick",
        Budget(experiments=("tiny", "tiny_no_hint"), seeds=(0, 1), flags=(), num_products=3, samplings=(ONE_STEP,)),
    )
    monkeypatch.setattr(command, "write_frozen", lambda folder: None)
    monkeypatch.setattr(command, "describe_run", described)
    for name, source in (
        *((f"{row}-seed{seed}", folders[f"tiny-seed{seed}"]) for row in ("tiny", "tiny_no_hint") for seed in (0, 1)),
        ("judge", folders["judge"]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(source)
    words = ["quick", "--output-dir", str(tmp_path), "--batch-size", "2"]
    assert command.main(words) == 0
    report = json.loads((tmp_path / "table.json").read_text())
    rows = report["rows"][ONE_STEP]
    assert rows["tiny"] == rows["tiny_no_hint"] and len(rows["tiny"]["ssim"]["seeds"]) == 2
    assert report["lead"][ONE_STEP]["mean"] == 0 and not report["lead"][ONE_STEP]["holds"]
    assert set(report["runs"]) == {f"{row}-seed{seed}" for row in ("tiny", "tiny_no_hint") for seed in (0, 1)}
    page = (tmp_path / "table.md").read_text()
    assert page in capsys.readouterr().out
    assert "no hint, all tokens, perceptual" in page and "4 trainings in 1 minutes on Abacus" in page
    assert (tmp_path / "sheet-0.png").stat().st_size > 1000

    # With the figures alone, without the runs, it is the same table; with another training's or another way, none.
    figures = tmp_path / "figures"
    elsewhere = ["quick", "--output-dir", str(tmp_path / "later"), "--figures", str(figures)]
    monkeypatch.setattr(command, "train_all", None)
    assert command.main(elsewhere) == 0
    assert json.loads((tmp_path / "later" / "table.json").read_text()) == report
    path = figures / "tiny-seed1.json"
    stored = json.loads(path.read_text())
    capsys.readouterr()
    for changed, said in (
        ({"run": {**stored["run"], "flags": ["--x"]}}, "of a run with other flags (--x)"),
        ({"protocol": {**stored["protocol"], "seed": 7}}, "measured by another protocol (seed: 7, not 0)"),
        ({"figures": 3}, "not the figures of a run"),
    ):
        path.write_text(json.dumps({**stored, **changed}))
        assert command.main(elsewhere) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: figures {path}: ") and said in error and error.count("\n") == 1
    path.write_text(json.dumps({**stored, "protocol": {**stored["protocol"], "judge_weights": "other"}}))
    assert command.main(elsewhere) == 0
    rows = json.loads((tmp_path / "later" / "table.json").read_text())["rows"][ONE_STEP]
    assert "similarity" not in rows["tiny"] and rows["tiny"]["ssim"] == report["rows"][ONE_STEP]["tiny"]["ssim"]
    assert "left out: the runs were measured with different ones" in capsys.readouterr().out


def described(run: Run) -> dict[str, Any]:
    about = {"seconds": 12.0, "samples": 1, "device": "Abacus", "git_revision": "abc"}
    return {"command": run.command, "flags": list(run.flags), **about}
