"""Of a single file that holds both: the U-Net's weights or, with `--ema`, their moving average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dtc_jax.weights import unet
from dtc_jax.weights.command import main
from dtc_jax.weights.model_folder import flatten_params, load_model_folder
from dtc_jax.weights.sources import read_sources
from tests.weights.published_files import moving_average, stable_diffusion_file, write, write_features


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_features(tmp_path_factory.mktemp("features"))


def imports(base: Path, target: Path, *flags: str) -> int:
    return main(["import", "--base", str(base), "--output", str(target), *flags])


@pytest.mark.parametrize("ema", [False, True], ids=["weights", "moving average"])
def test_weights_or_moving_average(ema: bool, features: list[str], tmp_path: Path) -> None:
    file, trained = stable_diffusion_file()
    average = {path: array + 1 for path, array in trained.items()}
    base = write(tmp_path, "sd", file | moving_average(unet.LDM, average))
    assert imports(base, tmp_path / "start", *(["--ema"] if ema else []), *features) == 0
    _, params = load_model_folder(tmp_path / "start", networks=("unet", "hint_encoder"))
    wanted, found = average if ema else trained, flatten_params(params["unet"])
    assert set(found) == set(wanted)
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path][:, :, :4] if path == "conv_in/kernel" else found[path], array, path)
    # The hint encoder is a copy of the same one.
    for path, array in flatten_params(params["hint_encoder"]).items():
        np.testing.assert_array_equal(array, wanted[path], err_msg=path)
    (source,) = [source for source in read_sources(tmp_path / "start") if source.network == "unet"]
    assert ("moving average" in source.layout) == ema


def test_moving_average_that_is_not_there(
    features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trained = stable_diffusion_file()
    base = write(tmp_path, "emaonly", file)
    assert imports(base, tmp_path / "start", "--ema", *features) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {base}: holds no moving average (model_ema.*); leave --ema out")
    assert said.count("\n") == 1 and not (tmp_path / "start").exists()
    # One that lacks a tensor is no moving average to start from.
    average = moving_average(unet.LDM, trained)
    del average["model_ema.diffusion_modelout2bias"]
    base = write(tmp_path, "cut", file | average)
    assert imports(base, tmp_path / "start", "--ema", *features) == 2
    assert "1 missing (model_ema.diffusion_modelout2bias [4])" in capsys.readouterr().err
    assert imports(base, tmp_path / "start", *features) == 0
