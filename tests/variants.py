"""The paper's variants at the smallest size: the choices of their experiments, on the networks of `test`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dtc_jax.config import CLIPVisionConfig, ExperimentConfig, HEDConfig, TrainingConfig
from dtc_jax.training.command import read_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
VARIANTS = (
    "sd15_addition",
    "sd15_cross_attention",
    "sd15_canny",
    "sd15_hed",
    "sd15_latent",
    "pbe_clip_cls",
    "pbe_clip_all",
    "pbe_dinov2",
    "pbe_dinov2_perceptual",
)
CLIP = CLIPVisionConfig(
    image_size=16, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
)


def experiment(name: str) -> ExperimentConfig:
    """CONFIG of configs/NAME.py."""
    return read_config(CONFIGS / f"{name}.py")[0]


def at_test_size(name: str, **training: Any) -> ExperimentConfig:
    """An experiment's choices with the networks and the training of `test`."""
    small, chosen = experiment("test"), experiment(name)
    model = dataclasses.replace(
        small.model,
        hint=dataclasses.replace(small.model.hint, kind=chosen.model.hint.kind),
        fusion=chosen.model.fusion,
        reference=dataclasses.replace(chosen.model.reference, mapper_layers=1),
        hed=HEDConfig(block_channels=(4, 4), convolutions_per_block=(1, 1)),
    )
    if isinstance(chosen.model.reference_encoder, CLIPVisionConfig):
        model = dataclasses.replace(model, reference_encoder=CLIP)
    weight = chosen.loss.perceptual_weight
    loss = dataclasses.replace(small.loss, perceptual_weight=weight)
    settings: TrainingConfig = dataclasses.replace(small.training, **training)
    return dataclasses.replace(small, name=name, model=model, loss=loss, training=settings)
