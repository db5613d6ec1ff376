"""Published models at small widths, every tensor random, written by the PyTorch packages that they belong to.

Widths are such that what files do not show (8 attention heads, 32 groups, heads of 64 channels) is as everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

SIZES: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}
DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter random, norms and zero convolutions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def write_stable_diffusion(
    folder: Path, seed: int = 0, in_channels: int = 4, pipeline: str = "StableDiffusionPipeline"
) -> diffusers.UNet2DConditionModel:
    """unet/, vae/ and model_index.json; returns the U-Net."""
    unet = diffusers.UNet2DConditionModel(
        in_channels=in_channels,
        down_block_types=DOWN,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **SIZES,
    )
    randomise(unet, seed).save_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    randomise(vae, seed + 1).save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return unet


def write_dinov2(folder: Path, seed: int = 10) -> transformers.Dinov2Model:
    """A DINOv2 with SwiGLU and positions for 518 pixels."""
    config = transformers.Dinov2Config(
        image_size=518,
        patch_size=14,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        mlp_ratio=4,  # what Facebook's names do not show
        use_swiglu_ffn=True,
    )
    model = randomise(transformers.Dinov2Model(config), seed)
    model.save_pretrained(folder)
    return model


def write_controlnet(folder: Path, seed: int = 20) -> diffusers.ControlNetModel:
    """A ControlNet for the U-Net above."""
    model = diffusers.ControlNetModel(
        down_block_types=DOWN, conditioning_embedding_out_channels=(8, 8), norm_num_groups=32, **SIZES
    )
    randomise(model, seed).save_pretrained(folder)
    return model


def write_vgg(path: Path, seed: int = 30) -> dict[str, torch.Tensor]:
    """A narrow VGG-19 as torchvision saves it: a pickle with a classifier."""
    channels, counts = (4, 4, 8, 8, 8), (2, 2, 4, 4, 4)
    layers: list[nn.Module] = []
    before = 3
    for width, count in zip(channels, counts, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    model.classifier = nn.Sequential(nn.Linear(8, 3))
    state = randomise(model, seed).state_dict()
    torch.save(state, path)
    return state
