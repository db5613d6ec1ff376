"""Published layouts at small widths, every tensor random, written without PyTorch.

Widths are such that what the files do not show (8 attention heads, 32 groups, heads of 64 channels) is as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dtc_jax.config import (
    AutoencoderKLConfig,
    CLIPVisionConfig,
    DINOv2Config,
    PaintByExampleEncoderConfig,
    UNetConfig,
    VGGConfig,
)
from dtc_jax.weights import autoencoder_kl, clip, dinov2, unet, vgg
from dtc_jax.weights.layouts import Layout
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.tensors import LazyTensor, Shape, write_tensors
from tests.models.trees import random_tree

Arrays = dict[str, np.ndarray]

UNET = UNetConfig(
    in_channels=4,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_levels=(True, False),
    cross_attention_dim=16,
)
VAE = AutoencoderKLConfig(block_out_channels=(32, 64), layers_per_block=1)
DINOV2 = DINOv2Config(position_image_size=518, hidden_size=64, num_hidden_layers=1, num_attention_heads=1)
VGG = VGGConfig(block_channels=(4, 4, 8, 8, 8), convolutions_per_block=(2, 2, 4, 4, 4))
ENCODER = PaintByExampleEncoderConfig(
    vision=CLIPVisionConfig(
        image_size=28, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    ),
    mapper_layers=1,
    projection_dim=16,
)
"""Its tokens are as wide as the U-Net's."""


def random_params(shapes: Mapping[str, Shape], seed: int) -> Arrays:
    """{Flax path: float32 array}."""
    return random_tree({path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}, seed)


def spelled(layout: Layout, params: Arrays, prefix: str = "") -> Arrays:
    """The same in a layout: {PyTorch name: array}."""
    return {prefix + tensor.name: tensor.read() for tensor in export_tensors(layout, params)}


def write(folder: Path, name: str, arrays: Arrays) -> Path:
    """NAME.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [LazyTensor(key, array.shape, array.dtype, lambda a=array: a) for key, array in arrays.items()]
    (path,) = write_tensors(folder, name, tensors)
    return path


def write_features(folder: Path) -> list[str]:
    """DINOv2 in Facebook's layout and VGG-19; returns the flags of `import` that name them."""
    reference = spelled(dinov2.FACEBOOK, random_params(dinov2.shapes(DINOV2), 10))
    perceptual = spelled(vgg.TORCHVISION, random_params(vgg.shapes(VGG), 11))
    files = write(folder, "dinov2", reference), write(folder, "vgg19", perceptual)
    return ["--reference-encoder", str(files[0]), "--vgg", str(files[1]), "--image-size", "32"]


def stable_diffusion_file(config: UNetConfig = UNET, layout: Layout = unet.LDM) -> tuple[Arrays, Arrays]:
    """An LDM single file of U-Net and autoencoder, and the U-Net's Flax parameters in it."""
    params = random_params(unet.shapes(config), 1)
    file = spelled(layout, params, unet.LDM_PREFIX)
    file |= spelled(autoencoder_kl.LDM, random_params(autoencoder_kl.shapes(VAE), 2), autoencoder_kl.LDM_PREFIX)
    return file | {"betas": np.linspace(0, 1, 10, dtype=np.float32)}, params


def moving_average(layout: Layout, params: Arrays) -> Arrays:
    """What LDM's LitEma adds to a single file: names without dots, and two numbers of its own."""
    names = {unet.ldm_ema_name(name): array for name, array in spelled(layout, params).items()}
    return names | {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(7)}


def paint_by_example_unet() -> UNetConfig:
    """9 input channels."""
    return replace(UNET, in_channels=9)


def paint_by_example_encoder() -> Arrays:
    """Flax parameters of its image encoder, the learned null vector among them."""
    return random_params(clip.paint_by_example_shapes(ENCODER), 3)
