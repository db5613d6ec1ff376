"""train.py on a prepared data set, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtc_jax.bench.synthetic import synthetic_sample
from tests.data import prepared
from tests.training.runs import FAST_COMPILE, ROOT, finish, read_metrics, start

pytestmark = pytest.mark.timeout(900)

FLAGS = ("--training.steps", "3", "--training.sample-every", "0", "--cpu-devices", "2", "--data.kind", "records")


def test_three_steps_and_a_model_that_samples(tmp_path: Path) -> None:
    folder = prepared.write(tmp_path / "data", broken=(4,))
    run_dir = tmp_path / "run"
    options = ("--data.path", str(folder), "--data.max-broken", "0.2", "--data.workers", "1")
    (log,) = finish(start(run_dir, *FLAGS, *options))
    lines = read_metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert np.isfinite([line["loss"] for line in lines]).all()
    # 24 places are two epochs and a half of ten records.
    assert "broken record replaced: train 4: record '000004'" in log
    (broken,) = [json.loads(line) for line in (run_dir / "broken_records.jsonl").read_text().splitlines()]
    assert broken["split"] == "train" and broken["number"] == 4

    assert json.loads((run_dir / "model" / "data_set.json").read_text())["name"] == "synthetic"

    sample = synthetic_sample(0, 32, 2)
    for name, image in (("scene", sample.scene), ("mask", sample.mask * 255), ("reference", sample.reference)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    files = [part for name in ("scene", "mask", "reference") for part in (f"--{name}", str(tmp_path / f"{name}.png"))]
    command = [sys.executable, str(ROOT / "sample.py"), "--checkpoint", str(run_dir), *files]
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE}
    subprocess.run(
        [*command, "--output", str(tmp_path / "out.png")], check=True, cwd=ROOT, env=environment, capture_output=True
    )
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (32, 32)


def test_errors_are_one_line(tmp_path: Path) -> None:
    folder = prepared.write(tmp_path / "data", train=4, broken=(0, 1, 2))
    cases = {
        "needs data.path": (),
        "no such folder": ("--data.path", str(tmp_path / "absent")),
        "data.max_broken = 0.01": ("--data.path", str(folder)),
    }
    processes = [start(tmp_path / f"run{number}", *FLAGS, *flags) for number, flags in enumerate(cases.values())]
    for process, message in zip(processes, cases, strict=True):
        _, log = process.communicate(timeout=600)
        assert process.returncode == 2, log[-2000:]
        last = log.splitlines()[-1]
        assert last.startswith("train.py: ") and message in last, log[-2000:]
        assert "Traceback" not in log
    # A wrong path leaves nothing behind that the right one would have to agree with.
    assert not (tmp_path / "run1").exists()
