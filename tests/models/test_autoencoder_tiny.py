"""TAESD as the autoencoder of a model; parity with diffusers is in tests/parity."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import AutoencoderTinyConfig, ConfigError, ExperimentConfig, config_from_json, config_to_json
from dtc_jax.models.autoencoder_tiny import AutoencoderTiny
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose

CONFIG = AutoencoderTinyConfig(channels=4, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


def test_is_an_autoencoder_like_the_others() -> None:
    config = dataclasses.replace(presets.test(), vae=CONFIG)
    model = DiffuseToChoose(config)
    params = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 16, 8, 3), minval=-1)

    @jax.jit
    def run(params, images):
        latents = model.encode_images(params, images)
        sampled = model.encode_images(params, images, jax.random.key(2))
        return latents, sampled, model.decode_latents(params, latents)

    latents, sampled, decoded = run(params, images)
    assert latents.shape == (2, 8, 4, 4) and decoded.shape == images.shape
    assert latents.dtype == decoded.dtype == jnp.float32
    # There is no posterior: a sample is the latents themselves.
    np.testing.assert_allclose(sampled, latents, atol=1e-5)


def test_is_told_apart_in_a_configuration_file() -> None:
    config = ExperimentConfig(name="t", model=dataclasses.replace(presets.test(), vae=CONFIG))
    assert config_from_json(config_to_json(config)).model.vae == CONFIG


def test_sizes_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="same length"):
        AutoencoderTinyConfig(num_encoder_blocks=(1, 2))
    with pytest.raises(ValueError, match="divisible by 2, not 3x4"):
        jax.eval_shape(AutoencoderTiny(CONFIG).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 3, 4, 3), jnp.float32))
