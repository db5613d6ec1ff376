"""A model of the smallest size whose images are as large as the cases of the evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, SamplingConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.initialize import initialize
from dtc_jax.weights.model_folder import save_model_folder


def save_test_model(folder: Path, seed: int = 0, image_size: int = 64) -> Path:
    """A model folder with random weights: images and references of 64 pixels, two sampling steps."""
    small = presets.test()
    model = dataclasses.replace(
        small,
        image_size=image_size,
        reference_encoder=dataclasses.replace(small.reference_encoder, image_size=image_size),
    )
    sampling = SamplingConfig(num_inference_steps=2, guidance_scale=2.0)
    params = initialize(DiffuseToChoose(model).shapes(), jax.random.key(seed))
    return save_model_folder(folder, ExperimentConfig(name="test", model=model, sampling=sampling), params)
