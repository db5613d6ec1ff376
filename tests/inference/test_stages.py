"""The sampler that computes all that it can before the loop, against everything in the loop; stages and previews."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import DiffusionConfig, HintConfig, ModelConfig
from dtc_jax.diffusion import DDIM, per_sample_normal, sample
from dtc_jax.inference import stages
from dtc_jax.inference.generate import image_keys
from dtc_jax.inference.settings import SamplerSettings, schedule_of
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from tests.models.trees import random_tree

STEPS, SCALE = 6, 2.0
ONE_STEP = 4 * 2 * (2 * 8 * 64 + 2 * 16 * 16 + 16 * 16) * 2
"""At least what the modulations of one step take, of two cases without guidance."""


def model(time: str = "timestep") -> ModelConfig:
    return dataclasses.replace(presets.test(), hint=HintConfig(adapter_channels=(4, 4, 8), time=time))  # type: ignore[arg-type]


def settings_of(time: str, guidance: str) -> SamplerSettings:
    return SamplerSettings(
        model=model(time),
        diffusion=DiffusionConfig(),
        num_inference_steps=STEPS,
        guidance=guidance != "none",
        unconditional="both" if guidance == "both" else "tokens",
    )


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """Nothing is zero, so that every part has an effect."""
    return random_tree(DiffuseToChoose(model()).shapes(), scale=0.1)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Two cases."""
    random = np.random.default_rng(0)
    mask = np.zeros((2, 16, 16, 1), np.uint8)
    mask[0, 4:12, 4:10] = mask[1, 2:8, 6:14] = 1
    images = {name: random.integers(0, 256, (2, 16, 16, 3), np.uint8) for name in ("scene", "hint", "reference")}
    return {**images, "mask": mask}


def plain(params: dict, batch: dict, keys: jax.Array, settings: SamplerSettings) -> jax.Array:
    """Latents, by everything in the loop: one branch after the other, one row for every image."""
    net, count = DiffuseToChoose(settings.model), keys.shape[0] // 2
    mask = jnp.asarray(batch["mask"], jnp.float32)
    masked = net.encode_images(params, (batch["scene"] / jnp.float32(127.5) - 1) * (1 - mask))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    tokens = net.encode_reference(params, (batch["reference"] / jnp.float32(255) - mean) / std)
    each = [jnp.repeat(x, count, axis=0) for x in (mask[:, ::2, ::2], masked, tokens, batch["hint"] / jnp.float32(255))]
    small, masked, tokens, hint = each

    def predict(latents: jax.Array, timestep: jax.Array, context: jax.Array, hinted: bool) -> jax.Array:
        times = jnp.full(len(latents), timestep)
        features = net.hint_features(params, hint, masked, times, context) if hinted else None
        modulations = net.modulations(params, features)
        return net.predict(params, latents, small, masked, times, context, modulations)

    def both(latents: jax.Array, timestep: jax.Array, _: Any) -> tuple[jax.Array, jax.Array | None]:
        conditional = predict(latents, timestep, tokens, True)
        if not settings.guidance:
            return conditional, None
        null = jnp.broadcast_to(params["null_tokens"]["embedding"], tokens.shape)
        return conditional, predict(latents, timestep, null, settings.unconditional == "tokens")

    split = jax.vmap(jax.random.split)(keys)
    return sample(
        both,
        schedule_of(settings.diffusion),
        DDIM(),
        settings.diffusion.prediction_type,
        per_sample_normal(split[:, 0], masked.shape[1:]),
        split[:, 1],
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
    )


def fast(params: dict, batch: dict, keys: jax.Array, settings: SamplerSettings, hint_bytes: int) -> jax.Array:
    """Latents, by the stages."""
    scene = stages.encode_scene(params, batch["scene"], batch["mask"], settings)
    tokens = stages.encode_reference(params, batch["reference"], settings)
    conditions = stages.condition(params, scene, tokens, batch["hint"], settings, images_per_case=keys.shape[0] // 2)
    state = stages.start(conditions, keys, settings)
    steps = stages.steps_of(settings)
    return stages.advance(params, conditions, state, keys, SCALE, steps, settings, hint_bytes=hint_bytes).latents


@pytest.mark.parametrize(
    ("time", "guidance", "images"),
    [
        ("timestep", "tokens", 2),
        ("timestep", "both", 1),
        ("timestep", "none", 1),
        ("fixed", "tokens", 1),
        ("fixed", "both", 2),
    ],
)
def test_fast_is_plain(params: dict, batch: dict, time: str, guidance: str, images: int) -> None:
    settings, keys = settings_of(time, guidance), image_keys(0, 2 * images)
    expected = np.asarray(jax.jit(plain, static_argnames="settings")(params, batch, keys, settings))
    assert np.isfinite(expected).all() and expected.std() > 0.1
    for hint_bytes in (stages.HINT_BYTES, 0) if images == 2 else (stages.HINT_BYTES,):
        found = fast(params, batch, keys, settings, hint_bytes)
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
