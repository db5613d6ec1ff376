"""Where the paper's variants start from: CLIP, Paint by Example's encoder, HED; and what one folder gives another."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from dtc_jax.config import ExperimentConfig, HEDConfig, load_config
from dtc_jax.training.initial import initial_params
from dtc_jax.weights import clip, hed
from dtc_jax.weights.command import experiment_of, main, other_than_default
from dtc_jax.weights.model_folder import flatten_params, load_model_folder, save_model_folder
from tests.variants import at_test_size
from tests.weights.published_files import (
    ENCODER,
    paint_by_example_encoder,
    random_params,
    spelled,
    stable_diffusion_file,
    write,
    write_features,
)

HED = HEDConfig(block_channels=(4, 4), convolutions_per_block=(1, 1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), "sd", stable_diffusion_file()[0])


def imports(base: Path, target: Path, *flags: str) -> int:
    return main(["import", "--base", str(base), "--output", str(target), "--image-size", "32", *flags])


def config_of(folder: Path) -> ExperimentConfig:
    return load_config(folder / "config.json")


def test_paint_by_examples_encoder_in_two_networks(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = paint_by_example_encoder()
    file = write(tmp_path, "encoder", spelled(clip.paint_by_example_layout(), encoder))
    assert imports(base, tmp_path / "start", "--reference-encoder", str(file)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"python train.py pbe_clip_cls --run-dir RUN --init-from {tmp_path / 'start'}" in last
    assert "--model.reference.mapper-layers 1" in last and "--model.hint" not in last
    config, params = load_model_folder(tmp_path / "start")
    assert config.model.reference_encoder == dataclasses.replace(ENCODER.vision, projection_dim=768)
    assert not {"hint_encoder", "hint_adapter", "fusion"} & params.keys()
    found = flatten_params(params["reference_encoder"])
    assert found.keys() == {path.removeprefix("model/") for path in encoder if path.startswith("model/")}
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, encoder[f"model/{path}"])
    for path, leaf in flatten_params(params["reference_projection"]).items():
        np.testing.assert_array_equal(leaf, encoder[path])


def test_plain_clip(base: Path, tmp_path: Path) -> None:
    params = random_params(clip.vision_shapes(ENCODER.vision, True), 5)
    file = write(tmp_path, "clip", spelled(clip.VISION_WITH_PROJECTION, params))
    assert imports(base, tmp_path / "start", "--reference-encoder", str(file)) == 0
    _, start = load_model_folder(tmp_path / "start", networks=("reference_encoder", "reference_projection"))
    for path, leaf in flatten_params(start["reference_encoder"]).items():
        np.testing.assert_array_equal(leaf, params[f"vision_model/{path}"])
    assert {"mapper", "final_layer_norm", "proj_out"} == start["reference_projection"].keys()
    assert experiment_of(config_of(tmp_path / "start").model)[0] == "pbe_clip_cls"


def test_hed(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = random_params(hed.shapes(HED), 6)
    file = write(tmp_path, "ControlNetHED", spelled(hed.CONTROLNET, params))
    features = write_features(tmp_path)[:4]
    assert imports(base, tmp_path / "start", "--hed", str(file), *features) == 0
    assert "python train.py sd15_hed --run-dir RUN" in capsys.readouterr().out
    config, start = load_model_folder(tmp_path / "start", networks=("hed", "hint_adapter"))
    assert (config.model.hint.kind, config.model.hed) == ("hed", HED) and "hint_adapter" in start
    for path, leaf in flatten_params(start["hed"]).items():
        np.testing.assert_array_equal(leaf, params[path])
    experiment, usual = experiment_of(config.model)
    assert experiment == "sd15_hed" and not [f for f in other_than_default(usual, usual)]


def test_reference_encoders_that_are_none(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imports(base, tmp_path / "start", "--reference-encoder", str(base)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "expected dinov2 or CLIP's image encoder" in error and error.count("\n") == 1


def test_networks_of_another_kind_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = dataclasses.replace(at_test_size("sd15_addition"), name="film", model=at_test_size("sd15_canny").model)
    stored = initial_params(film, jax.random.key(1))
    folder = save_model_folder(tmp_path / "film", film, stored)
    with caplog.at_level(logging.INFO, "dtc_jax"):
        params = initial_params(at_test_size("sd15_addition"), jax.random.key(2), [folder])
        assert "fusion is left out: the experiment's fusion is addition, not film" in caplog.text
        assert set(params["fusion"]["middle"]) == {"zero_conv"}
        clip_params = initial_params(at_test_size("pbe_clip_cls"), jax.random.key(2), [folder])
    assert "reference_encoder is left out: the experiment's reference encoder is CLIP, not DINOv2" in caplog.text
    assert {"mapper", "final_layer_norm", "proj_out"} == clip_params["reference_projection"].keys()
    for name in ("unet", "hint_encoder", "vae"):
        jax.tree.map(np.testing.assert_array_equal, params[name], stored[name])
    jax.tree.map(np.testing.assert_array_equal, clip_params["unet"], stored["unet"])
