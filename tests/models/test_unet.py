"""The U-Net's own promises; that it equals the published one is in tests/parity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from dtc_jax import presets
from dtc_jax.config import UNetConfig
from dtc_jax.models.resnet import nearest_upsample
from dtc_jax.models.unet import UNet2DConditionModel, feature_channels, timestep_embedding
from tests.models.trees import random_tree

CONFIG = UNetConfig(
    in_channels=3,
    out_channels=2,
    block_out_channels=(4, 8),
    layers_per_block=1,
    attention_levels=(False, True),
    num_attention_heads=2,
    cross_attention_dim=6,
    norm_num_groups=2,
)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {
        "inputs": generator.standard_normal((2, 4, 6, 3), dtype=np.float32),
        "timesteps": np.array([0, 999]),
        "tokens": generator.standard_normal((2, 3, 6), dtype=np.float32),
    }


@pytest.fixture(scope="module")
def params(inputs: dict[str, Any]) -> PyTree:
    return random_tree(jax.eval_shape(UNet2DConditionModel(CONFIG).init, jax.random.key(0), **inputs)["params"])


def test_timestep_embedding_is_cosines_then_sines() -> None:
    embedding = np.asarray(timestep_embedding(jnp.array([0, 7, 999]), 8))
    for row, timestep in zip(embedding, (0, 7, 999), strict=True):
        for index in range(4):
            angle = timestep / 10000 ** (index / 4)
            np.testing.assert_allclose(row[index], np.cos(angle), atol=1e-4)
            np.testing.assert_allclose(row[4 + index], np.sin(angle), atol=1e-4)


def test_nearest_upsample_repeats_every_pixel() -> None:
    x = np.arange(12.0, dtype=np.float32).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(nearest_upsample(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))


def test_feature_channels_of_sd15() -> None:
    assert feature_channels(presets.sd15().unet) == (320,) * 4 + (640,) * 3 + (1280,) * 6


def test_every_modulation_reaches_the_output(params: PyTree, inputs: dict[str, Any]) -> None:
    channels = feature_channels(CONFIG)
    model = UNet2DConditionModel(CONFIG)
    run = jax.jit(lambda modulations: model.apply({"params": params}, **inputs, modulations=modulations))
    identity = [(jnp.zeros((1, 1, 1, width)), jnp.zeros((1, 1, 1, width))) for width in channels]
    plain = jax.jit(model.apply)({"params": params}, **inputs)
    assert plain.shape == (2, 4, 6, 2)
    np.testing.assert_allclose(run(identity), plain, rtol=1e-5, atol=1e-5)
    for place in range(len(channels)):
        for part in range(2):
            changed = [list(pair) for pair in identity]
            changed[place][part] = changed[place][part] + 0.5
            assert np.abs(run([tuple(pair) for pair in changed]) - plain).max() > 1e-3, (place, part)


def test_bfloat16_computes_near_float32_and_returns_float32(params: PyTree, inputs: dict[str, Any]) -> None:
    expected = jax.jit(UNet2DConditionModel(CONFIG).apply)({"params": params}, **inputs)
    output = jax.jit(UNet2DConditionModel(CONFIG, jnp.bfloat16).apply)({"params": params}, **inputs)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.1


def test_size_that_cannot_be_halved_is_refused() -> None:
    odd = jnp.zeros((1, 4, 5, 3)), jnp.zeros(1), jnp.zeros((1, 1, 6))
    with pytest.raises(ValueError, match=r"4x5.*divisible by 2"):
        jax.eval_shape(UNet2DConditionModel(CONFIG).init, jax.random.key(0), *odd)


def test_wrong_number_of_modulations_is_refused(params: PyTree, inputs: dict[str, Any]) -> None:
    few = [(jnp.zeros((1, 1, 1, 4)), jnp.zeros((1, 1, 1, 4)))]
    with pytest.raises(ValueError):
        jax.eval_shape(lambda p: UNet2DConditionModel(CONFIG).apply({"params": p}, **inputs, modulations=few), params)
