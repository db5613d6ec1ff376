"""`bench sample`: both sides return the same images; what is printed; errors of use."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.bench.sample import main, table, unlike
from dtc_jax.bench.sampling_inputs import made_up_params
from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from tests.training.runs import FAST_COMPILE, ROOT


def test_the_same_weights_in_every_process() -> None:
    shapes = DiffuseToChoose(presets.test()).shapes()["fusion"]
    first, second = (jax.tree.leaves(made_up_params(shapes, "fusion")) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float32 and np.all(one != 0)
    assert len({leaf.reshape(-1)[0].item() for leaf in first}) == len(first)


def test_what_pytorch_cannot_do_is_not_compared() -> None:
    assert unlike(ExperimentConfig(model=presets.test())) is None
    assert "model.vae" in (unlike(ExperimentConfig(model=presets.tiny())) or "")


def test_table() -> None:
    row = {"seconds": 2.0, "seconds_per_image": 1.0, "cpu_seconds": 3.5, "memory": 2**31, "stages": {"decode": 0.25}}
    slower = {**row, "seconds": 4.0, "seconds_per_image": 2.0, "stages": {}}
    report: dict[str, Any] = {
        "experiment": "sd15",
        "device": "Abacus",
        "cores": 2,
        "steps": 4,
        "batch_size": 1,
        "images_per_case": 2,
        "image_size": 512,
        "dtype": "float32",
        "hint_time": "fixed",
        "flops_per_image": 8e12,
        "compile_seconds": 60.0,
        "rows": {"jax": row, "pytorch": slower},
        "largest_difference": 1e-6,
        "pytorch_skipped": None,
        "versions": {"jax": "1"},
        "command": "python -m dtc_jax.bench sample",
        "revision": "abc",
    }
    text = table(report)
    assert "sd15 on Abacus, 2 cores: 512 pixels, 1 x 2 images, 4 guided steps, float32, hint.time fixed" in text
    assert "8 TFLOP an image; compiled in 60.0 s" in text and "1.0e-06" in text
    (theirs,) = [line for line in text.splitlines() if line.startswith("pytorch")]
    assert "2.00 GiB" in theirs and theirs.endswith("0.50 x")
    del report["rows"]["pytorch"]
    assert "pytorch: not measured, no device" in table({**report, "pytorch_skipped": "no device"})


def test_errors_of_use_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "no experiment 'absent'": ("absent",),
        "--steps must be at least 1": ("test", "--steps", "0"),
        "--cores 4096: there are": ("test", "--cores", "4096"),
        "--pytorch yes: ": ("tiny", "--pytorch", "yes"),
    }
    for message, words in cases.items():
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
@pytest.mark.parametrize(
    "flags",
    [
        ("--images-per-case", "2"),
        ("--model.hint.time", "fixed"),
        ("--sampling.unconditional", "both", "--model.reference-encoder.position-image-size", "32"),
    ],
)
def test_both_sides_return_the_same_images(flags: tuple[str, ...]) -> None:
    command = [
        "-m",
        "dtc_jax.bench",
        "sample",
        "test",
        "--batch-size",
        "2",
        "--steps",
        "3",
        "--repeats",
        "1",
        "--no-stages",
    ]
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command, "--pytorch", "yes", "--json", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["largest_difference"] < 1e-4
    assert {"jax", "pytorch", "pytorch, hint before the loop"} == set(report["rows"])
    for row in report["rows"].values():
        assert row["seconds"] > 0 and row["cpu_seconds"] > 0 and row["memory"] > 2**20
    assert report["flops_per_image"] > 0 and report["compile_seconds"] > 0
