"""DreamPaint at the smallest size, photos of a product, and a base to tune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from dtc_jax.config import CLIPTextConfig, DataConfig, ExperimentConfig, HintConfig, ReferenceConfig, TrainingConfig
from dtc_jax.data.tokenizer import BYTE_VOCABULARY
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder
from tests.variants import experiment

TEXT = CLIPTextConfig(
    vocab_size=BYTE_VOCABULARY,
    eos_token_id=BYTE_VOCABULARY - 1,
    max_position_embeddings=24,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
)
PROMPTS = {"prompt": "a sks shirt", "class_prompt": "a shirt"}


def at_test_size(photos: Path | None = None, levels: int = 1, **training: Any) -> ExperimentConfig:
    """The choices of `dreampaint` with the networks and the training of `test`, and a U-Net of one level."""
    small, chosen = experiment("test"), experiment("dreampaint")
    channels = (8, 16)[:levels]
    unet = dataclasses.replace(small.model.unet, block_out_channels=channels, attention_levels=(True, False)[:levels])
    model = dataclasses.replace(
        small.model,
        unet=unet,
        reference_encoder=TEXT,
        reference=ReferenceConfig(projection="none"),
        hint=HintConfig(kind="none"),
    )
    data = DataConfig(
        kind="product",
        product=None if photos is None else str(photos),
        num_class_images=3,
        flip_probability=0,
        **PROMPTS,
    )
    options = {"trainable": chosen.training.trainable, "batch_size": 4, "sample_every": 0, **training}
    settings: TrainingConfig = dataclasses.replace(small.training, **options)
    return dataclasses.replace(
        small, name="dreampaint", model=model, data=data, loss=chosen.loss, ema=chosen.ema, training=settings
    )


def write_photos(folder: Path, count: int = 3) -> Path:
    """Photos of several sizes, each of a colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), np.uint8)
        pixels[..., number % 3] = 250
        Image.fromarray(pixels).save(folder / f"photo{number}.png")
    return folder


def write_base(folder: Path, config: ExperimentConfig) -> Path:
    """A model folder that holds a U-Net and an autoencoder alone, as if they had been trained."""
    params = DiffuseToChoose(config.model).init(jax.random.key(3), ("unet", "vae"))
    return save_model_folder(folder, config, params)
