"""Paint by Example's learned null vector becomes the model's null tokens, from either layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import autoencoder_kl, clip, unet
from dtc_jax.weights.command import main
from dtc_jax.weights.model_folder import load_model_folder
from dtc_jax.weights.sources import read_sources
from dtc_jax.weights.unet_config import to_diffusers_config
from tests.weights.published_files import (
    VAE,
    paint_by_example_encoder,
    paint_by_example_unet,
    random_params,
    spelled,
    stable_diffusion_file,
    write,
    write_features,
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_features(tmp_path_factory.mktemp("features"))


def imports(base: Path, target: Path, *flags: str) -> int:
    return main(["import", "--base", str(base), "--output", str(target), *flags])


def diffusers_folder(folder: Path, unet_params: dict[str, np.ndarray], encoder: dict[str, np.ndarray]) -> Path:
    config = to_diffusers_config(paint_by_example_unet())
    name = "diffusion_pytorch_model"
    write(folder / "unet", name, spelled(unet.PAINT_BY_EXAMPLE, unet_params))
    write(folder / "vae", name, spelled(autoencoder_kl.DIFFUSERS, random_params(autoencoder_kl.shapes(VAE), 2)))
    write(folder / "image_encoder", "model", spelled(clip.paint_by_example_layout(), encoder))
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **config}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PaintByExamplePipeline"}))
    return folder


@pytest.mark.parametrize("layout", ["diffusers", "LDM"])
def test_paint_by_examples_null_vector(layout: str, features: list[str], tmp_path: Path) -> None:
    file, params = stable_diffusion_file(paint_by_example_unet(), unet.PAINT_BY_EXAMPLE_LDM)
    encoder = paint_by_example_encoder()
    if layout == "diffusers":
        base = diffusers_folder(tmp_path / "pbe", params, encoder)
    else:
        base = write(tmp_path, "pbe", file | spelled(clip.PAINT_BY_EXAMPLE_LDM, encoder))
    assert imports(base, tmp_path / "start", *features) == 0
    config, start = load_model_folder(tmp_path / "start", networks=("unet", "null_tokens"))
    vector = encoder["uncond_vector"]
    assert vector.shape == (1, 1, 16) and list(start["null_tokens"]) == ["embedding"]
    np.testing.assert_array_equal(start["null_tokens"]["embedding"], vector)
    tokens = DiffuseToChoose(config.model).null_tokens(start, np.zeros((2, 3, 16), np.float32))
    np.testing.assert_array_equal(tokens, np.broadcast_to(vector, (2, 3, 16)))
    # Channels in our order, and the mask's polarity kept in mind.
    np.testing.assert_array_equal(start["unet"]["conv_in"]["kernel"], params["conv_in/kernel"])
    assert config.model.unet.mask_channel == "keep"
    said = {source.network: source.layout for source in read_sources(tmp_path / "start")}
    assert said["null_tokens"] == "Paint by Example's null vector"


def test_stable_diffusion_has_no_null_vector(features: list[str], tmp_path: Path) -> None:
    base = write(tmp_path, "sd", stable_diffusion_file()[0])
    assert imports(base, tmp_path / "start", *features) == 0
    said = {source.network: source.origin for source in read_sources(tmp_path / "start")}
    assert said["null_tokens"] == "fresh"
