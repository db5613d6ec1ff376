"""Whole runs with the options of the step: what they leave on disk, and how one that diverges ends."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from dtc_jax.weights.model_folder import flatten_params, load_model_folder
from dtc_jax.weights.run_folder import load_checkpoint
from tests.training.runs import finish, read_checkpoint, read_metrics, start

LITTLE_MEMORY = (
    *("--ema.no-enabled", "--optimizer.moments-dtype", "bfloat16", "--training.frozen-dtype", "bfloat16"),
    *("--training.remat", "block", "--training.accumulation-steps", "2", "--loss.perceptual-window", "16"),
)


@pytest.mark.slow
def test_run_in_little_memory(tmp_path: Path) -> None:
    run_dir, flags = tmp_path / "run", ("--training.steps", "3", "--training.sample-every", "0")
    finish(start(run_dir, *flags, *LITTLE_MEMORY, "--cpu-devices", "2"))
    stored = read_checkpoint(run_dir, 3)
    assert not [path for path in stored if path.startswith("['ema']")]
    moments = {leaf.dtype.name for path, leaf in stored.items() if "'mu'" in path or "'nu'" in path}
    assert moments == {"bfloat16"}
    # What is exported are the parameters.
    model = flatten_params(load_model_folder(run_dir / "model")[1])
    for path, leaf in model.items():
        if f"['params']['{path}']" in stored:
            np.testing.assert_array_equal(leaf, stored[f"['params']['{path}']"])
        else:
            assert leaf.dtype.name == "bfloat16", path
    # The checkpoint alone is a model too.
    (run_dir / "model").rename(tmp_path / "aside")
    unfinished = flatten_params(load_checkpoint(run_dir)[1])
    assert jax.tree.all(jax.tree.map(np.array_equal, unfinished, model))


def test_run_that_diverges_stops_with_one_line(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("--optimizer.learning-rate", "1e25", "--optimizer.warmup-steps", "0", "--training.steps", "50")
    process = start(run_dir, *options, "--training.max-nonfinite-steps", "3", "--cpu-devices", "1")
    log = process.communicate(timeout=600)[1]
    last = log.strip().splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in log, log[-3000:]
    assert last.startswith("train.py: loss or gradient was not finite in 3 steps in a row"), last
    lines = read_metrics(run_dir)
    assert [line["nonfinite_in_a_row"] for line in lines[-3:]] == [1, 2, 3] and len(lines) < 20
    newest = max(int(path.name) for path in (run_dir / "checkpoints").iterdir())
    stored = read_checkpoint(run_dir, newest)
    assert all(np.isfinite(np.float32(leaf)).all() for leaf in stored.values())
