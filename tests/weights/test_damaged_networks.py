"""A file in which the very tensor or setting is wrong that tells a network's sizes: one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtc_jax.config import AutoencoderTinyConfig, HEDConfig, InceptionConfig
from dtc_jax.weights import (
    autoencoder_kl,
    autoencoder_tiny,
    clip,
    controlnet,
    dinov2,
    hed,
    inception,
    unet,
    unet_config,
    vgg,
)
from dtc_jax.weights.detect import detect_networks
from dtc_jax.weights.layouts import Layout, Shapes, torch_shapes
from dtc_jax.weights.mapping import import_tensors
from dtc_jax.weights.recognition import config_beside
from dtc_jax.weights.starting_parts import taesd
from dtc_jax.weights.tensors import ArraySource, WeightsError, open_tensors
from tests.weights.published_files import DINOV2, ENCODER, UNET, VAE, VGG, random_params, spelled, write

CONTROLNET = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
CONTROLNET_LDM = {"input_hint_block.0.weight": (16, 3, 3, 3)}
HED = HEDConfig(block_channels=(4, 4), convolutions_per_block=(1, 1))
INCEPTION = InceptionConfig(channel_divisor=16, num_classes=8)
TINY = AutoencoderTinyConfig(channels=4)


def part_of_taesd(part: str) -> Shapes:
    return autoencoder_tiny.part_shapes(autoencoder_tiny.shapes(TINY), part)


KINDS: dict[str, tuple[Layout, Callable[[], Shapes], dict[str, tuple[int, ...]]]] = {
    "unet": (unet.DIFFUSERS, lambda: unet.shapes(UNET), {}),
    "unet ldm": (unet.LDM, lambda: unet.shapes(UNET), {}),
    "controlnet": (controlnet.DIFFUSERS, lambda: controlnet.shapes(UNET), CONTROLNET),
    "controlnet ldm": (controlnet.LDM, lambda: controlnet.shapes(UNET), CONTROLNET_LDM),
    "vae": (autoencoder_kl.DIFFUSERS, lambda: autoencoder_kl.shapes(VAE), {}),
    "vae ldm": (autoencoder_kl.LDM, lambda: autoencoder_kl.shapes(VAE), {}),
    "dinov2": (dinov2.TRANSFORMERS, lambda: dinov2.shapes(replace(DINOV2, use_swiglu_ffn=False)), {}),
    "dinov2 facebook": (dinov2.FACEBOOK, lambda: dinov2.shapes(DINOV2), {}),
    "vgg": (vgg.TORCHVISION, lambda: vgg.shapes(VGG), {}),
    "taesd": (autoencoder_tiny.DIFFUSERS, lambda: autoencoder_tiny.shapes(TINY), {}),
    "taesd encoder": (autoencoder_tiny.TAESD_ENCODER, lambda: part_of_taesd("encoder"), {}),
    "taesd decoder": (autoencoder_tiny.TAESD_DECODER, lambda: part_of_taesd("decoder"), {}),
    "hed": (hed.CONTROLNET, lambda: hed.shapes(HED), {}),
    "inception": (inception.PYTORCH_FID, lambda: inception.shapes(INCEPTION), {}),
    "paint by example": (clip.paint_by_example_layout(), lambda: clip.paint_by_example_shapes(ENCODER), {}),
}
_MIDDLE = "transformer_blocks.0.attn2.to_k.weight"
CASES = [
    ("unet", "conv_in.weight", [None, (), (5,)]),
    ("unet", f"mid_block.attentions.0.{_MIDDLE}", [None, (), (5,)]),
    ("unet", f"up_blocks.1.attentions.0.{_MIDDLE}", [(), (5,)]),
    ("unet", "down_blocks.1.resnets.0.conv1.weight", [None, (), (0, 3, 3, 3)]),
    ("unet ldm", "input_blocks.0.0.weight", [(), (5,)]),
    ("unet ldm", "input_blocks.1.0.out_layers.3.weight", [None, (), (5,)]),
    ("unet ldm", f"middle_block.1.{_MIDDLE}", [None, (5,)]),
    ("controlnet", "conv_in.weight", [(), (5,)]),
    ("controlnet", f"mid_block.attentions.0.{_MIDDLE}", [None, (5,)]),
    ("controlnet ldm", "input_blocks.0.0.weight", [None, (), (5,)]),
    ("vae", "encoder.conv_in.weight", [(), (5,)]),
    ("vae", "post_quant_conv.weight", [()]),
    ("vae", "encoder.down_blocks.1.resnets.0.conv1.weight", [None, ()]),
    ("vae ldm", "encoder.down.0.block.0.conv1.weight", [None, (5,)]),
    ("dinov2", "embeddings.position_embeddings", [(5,), (1370, 64)]),
    ("dinov2", "embeddings.patch_embeddings.projection.weight", [None, ()]),
    ("dinov2", "encoder.layer.0.mlp.fc1.weight", [None, (5,)]),
    ("dinov2 facebook", "pos_embed", [(5,)]),
    ("vgg", "features.0.weight", [None, (5,)]),
    ("vgg", "features.28.weight", [(5,)]),
    ("taesd", "encoder.layers.0.weight", [None, (5,)]),
    ("taesd", "encoder.layers.1.conv.0.weight", [None, (5,)]),
    ("taesd encoder", "0.weight", [None, (5,)]),
    ("taesd encoder", "1.conv.0.weight", [None, (5,)]),
    ("taesd decoder", "1.weight", [None, (5,)]),
    ("taesd decoder", "3.conv.0.weight", [None, (5,)]),
    ("taesd decoder", "4.conv.0.weight", [None, (5,)]),
    ("hed", "block2.convs.0.weight", [None, (5,)]),
    ("inception", "fc.weight", [(5,)]),
    ("paint by example", "proj_out.weight", [None, (5,)]),
    ("paint by example", "model.vision_model.embeddings.patch_embedding.weight", [None, (5,)]),
    ("paint by example", "model.vision_model.embeddings.position_embedding.weight", [None, (5,)]),
    ("paint by example", "model.vision_model.encoder.layers.0.mlp.fc1.weight", [None, (5,)]),
]


@pytest.fixture(scope="module")
def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """{kind: {PyTorch name: shape}}."""
    return {kind: {**torch_shapes(layout, make()), **more} for kind, (layout, make, more) in KINDS.items()}


@pytest.mark.parametrize(("kind", "name", "found"), CASES, ids=[f"{kind}: {name}" for kind, name, _ in CASES])
def test_the_tensor_that_tells_the_sizes_is_named(
    kind: str, name: str, found: list[tuple[int, ...] | None], shapes: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    for shape in found:
        changed = {**shapes[kind], name: shape}
        arrays = {key: np.broadcast_to(np.float32(0), size) for key, size in changed.items() if size is not None}
        with pytest.raises(WeightsError) as error:
            for detected in detect_networks(ArraySource(arrays, Path("some.safetensors"))):
                import_tensors(detected.layout, detected.source, detected.shapes)
        missing = (f"{name} is missing", f"1 missing ({name} ")
        said = missing if shape is None else (f"{name} is {list(shape)}, expected",)
        assert str(error.value).startswith("some.safetensors: ") and any(what in str(error.value) for what in said)


def test_other_networks_that_have_features() -> None:
    """torchvision's DenseNet, MobileNet and SqueezeNet are none that is known, and no crash."""
    for names in (
        {"features.conv0.weight": (64, 3, 7, 7), "features.denseblock1.denselayer1.conv1.weight": (128, 64, 1, 1)},
        {"features.0.0.weight": (32, 3, 3, 3), "features.1.conv.0.0.weight": (32, 1, 3, 3)},
        {"features.0.weight": (64, 3, 3, 3), "features.3.squeeze.weight": (16, 64, 1, 1)},
    ):
        arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()}
        with pytest.raises(WeightsError, match="of no network that is known"):
            detect_networks(ArraySource(arrays))


def test_a_configuration_says_which_network_it_is(tmp_path: Path) -> None:
    """Even where tensors are missing by which it is told otherwise: they are named then."""
    state = spelled(unet.DIFFUSERS, random_params(unet.shapes(UNET), 0))
    del state["conv_out.weight"], state["conv_in.weight"]
    write(tmp_path, "diffusion_pytorch_model", state)
    with pytest.raises(WeightsError, match="of no network that is known"):
        detect_networks(open_tensors(tmp_path))
    said = {"_class_name": "UNet2DConditionModel", **unet_config.to_diffusers_config(UNET)}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (found,) = detect_networks(open_tensors(tmp_path))
    assert found.network == "unet" and found.config == UNET


WRONG = [None, [], "x", 0, -1, {"a": 1}, [[8]], [0], float("inf"), True]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_setting_of_another_type_is_named(value: Any) -> None:
    read: dict[Callable[[dict[str, Any]], Any], list[str]] = {
        unet_config.from_diffusers_config: [
            "in_channels",
            "layers_per_block",
            "cross_attention_dim",
            "norm_num_groups",
        ],
        autoencoder_kl.from_diffusers_config: ["latent_channels", "norm_num_groups", "in_channels"],
        dinov2.from_transformers_config: ["patch_size", "hidden_size", "num_hidden_layers", "mlp_ratio", "image_size"],
    }
    for function, names in read.items():
        for name in names:
            with pytest.raises(WeightsError, match=f"config.json: {name} = "):
                function({name: value})
    if value is not True:
        with pytest.raises(WeightsError, match=r"config.json: block_out_channels = "):
            autoencoder_kl.from_diffusers_config({"block_out_channels": value})
        with pytest.raises(WeightsError, match=r"config.json: scaling_factor = "):
            autoencoder_kl.from_diffusers_config({"scaling_factor": value})
        with pytest.raises(WeightsError, match=r"config.json: (down_block_types|blocks of)"):
            autoencoder_kl.from_diffusers_config({"down_block_types": value})


@pytest.mark.parametrize(
    "setting",
    [{"cross_attention_norm": "layer_norm"}, {"resnet_skip_time_act": True}, {"up_block_types": ["UpBlock2D"]}],
)
def test_a_unet_with_what_ours_does_not_have(setting: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=f"{next(iter(setting))} = .* is not supported"):
        unet_config.from_diffusers_config({**unet_config.to_diffusers_config(UNET), **setting})


@pytest.mark.parametrize("text", ["{", "[]", "7", "[" * 100_000, '{"architectures": 3'], ids=lambda text: text[:20])
def test_a_damaged_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config.json: not a configuration in JSON"):
        config_beside(ArraySource({}, tmp_path), "UNet2DConditionModel")


def test_taesd_whose_decoder_is_its_encoder(tmp_path: Path) -> None:
    whole = random_params(autoencoder_tiny.shapes(TINY), 0)
    encoder = {path: array for path, array in whole.items() if path.startswith("encoder/")}
    for name in ("taesd_encoder", "taesd_decoder"):
        write(tmp_path, name, spelled(autoencoder_tiny.TAESD_ENCODER, encoder))
    with pytest.raises(WeightsError, match=r"taesd_decoder.safetensors: holds taesd_encoder, expected taesd_decoder"):
        taesd(tmp_path)
