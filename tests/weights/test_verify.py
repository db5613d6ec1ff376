"""What `verify` makes of numbers; that both sides agree is tested where PyTorch is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import UNetConfig
from dtc_jax.weights import command
from dtc_jax.weights.command import main
from dtc_jax.weights.verify import SAMPLE, Comparison, latent_size, random_inputs, relative_error, table


def test_relative_error_by_hand() -> None:
    ours, theirs = np.asarray([3.0, 4.0], np.float32), np.asarray([3.0, 0.0], np.float32)
    assert relative_error([ours], [theirs]) == pytest.approx(4 / 3)
    # The largest of several, whatever their order; against nothing, the difference itself.
    assert relative_error([theirs, ours], [theirs, theirs]) == pytest.approx(4 / 3)
    assert relative_error([ours, theirs], [theirs, theirs]) == pytest.approx(4 / 3)
    assert relative_error([ours], [0 * ours]) == pytest.approx(5)
    assert relative_error([ours], [ours]) == 0


def test_wrong_shapes_and_nan_are_never_within_tolerance() -> None:
    ones = np.ones((1, 3))
    assert relative_error([ones], [np.ones((2, 3))]) == relative_error([ones, ones], [ones]) == float("inf")
    nan = relative_error([ones, np.full(2, np.nan)], [ones, np.ones(2)])
    assert np.isnan(nan) and not Comparison("unet", nan, 1e-5).passed
    assert Comparison("unet", 1e-5, 1e-5).passed and not Comparison("unet", 1.1e-5, 1e-5).passed


NARROW = UNetConfig(block_out_channels=(32, 32, 32, 32))
"""As many levels as at full size, and one channel per group."""

ROWS = {
    "passed": ([Comparison("unet", 1e-7, 1e-5), Comparison(SAMPLE, 5e-4, 1e-3)], 0),
    "failed": ([Comparison("unet", 2e-5, 1e-5), Comparison(SAMPLE, 5e-4, 1e-3)], 1),
    "not a number": ([Comparison("unet", 1e-7, 1e-5), Comparison(SAMPLE, float("nan"), 1e-3)], 1),
}


@pytest.mark.parametrize("case", ROWS)
def test_exit_code_and_table(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, code = ROWS[case]
    asked = {}

    def compare(checkpoint: object, exported: Path, **numbers: object) -> list[Comparison]:
        asked.update(numbers)
        return rows

    monkeypatch.setattr(command, "verify", compare)
    assert main(["verify", "--exported", str(tmp_path), "--tolerance", "0.25", "--num-inference-steps", "0"]) == code
    said = capsys.readouterr().out
    assert said.strip() == table(rows) and said.count("FAILED") == code
    assert asked["tolerance"] == 0.25 and asked["with_sample"] is False


def test_inputs_are_small_at_full_size_and_large_where_norms_would_see_next_to_nothing() -> None:
    assert latent_size(presets.sd15()) == (8, 16)
    for model in (presets.test(), presets.tiny(), dataclasses.replace(presets.sd15(), unet=NARROW)):
        height, width = latent_size(model)
        assert height >= 8 and width >= 12 and height % model.unet.downsampling == width % model.unet.downsampling == 0
        places = height * width // model.unet.downsampling**2
        per_norm = places * model.unet.block_out_channels[-1] // model.unet.norm_num_groups
        assert places >= 24 or per_norm >= 64


def test_inputs_leave_nothing_untried() -> None:
    inputs = random_inputs(presets.test(), seed=0)
    assert inputs["timesteps"][0] != inputs["timesteps"][1]
    assert inputs["noisy"].shape[1] != inputs["noisy"].shape[2]
    assert 0 < inputs["sample_mask"].mean() < 1 and inputs["sample_hint"][inputs["sample_mask"][..., 0] == 0].max() == 0
    again, other = random_inputs(presets.test(), seed=0), random_inputs(presets.test(), seed=1)
    np.testing.assert_array_equal(inputs["tokens"], again["tokens"])
    assert not np.array_equal(inputs["tokens"], other["tokens"])
