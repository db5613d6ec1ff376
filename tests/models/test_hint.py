"""The hint's path: adapter, and the replica of the U-Net's encoder."""

from __future__ import annotations

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from dtc_jax import presets
from dtc_jax.config import HintConfig, ModelConfig, UNetConfig
from dtc_jax.models.hint import HintAdapter, HintEncoder, replicate_encoder
from dtc_jax.models.layers import Conv2d
from dtc_jax.models.unet import UNet2DConditionModel
from tests.models.trees import random_tree

UNET = UNetConfig(
    block_out_channels=(4, 8),
    layers_per_block=1,
    attention_levels=(True, False),
    num_attention_heads=2,
    cross_attention_dim=6,
    norm_num_groups=2,
)


@pytest.mark.parametrize(
    ("config", "strides", "channels"),
    [
        (presets.sd15(), (2, 2, 2, 1), (16, 32, 96, 4)),
        (presets.tiny(), (2, 2, 1, 1), (16, 32, 48, 12)),
        (presets.test(), (2, 1, 1, 1), (4, 4, 8, 4)),
    ],
    ids=["sd15", "tiny", "test"],
)
def test_adapter_brings_pixels_to_the_latents(
    config: ModelConfig, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    adapter = HintAdapter(config)
    height, width = 2 * config.vae.factor, 3 * config.vae.factor
    hint = np.random.default_rng(0).uniform(size=(1, height, width, 3)).astype(np.float32)
    params = random_tree(jax.eval_shape(adapter.init, jax.random.key(0), hint)["params"])
    assert set(params) == {f"convs_{index}" for index in range(4)}

    expected = hint
    for index, (stride, features) in enumerate(zip(strides, channels, strict=True)):
        expected = expected if index == 0 else nn.silu(expected)
        expected = Conv2d(features, stride=stride).apply({"params": params[f"convs_{index}"]}, expected)
    actual = adapter.apply({"params": params}, hint)
    assert actual.shape == (1, 2, 3, config.vae.latent_channels)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_adapter_starts_at_zero() -> None:
    config = presets.test()
    hint = jnp.ones((1, 4, 4, 3))
    adapter = HintAdapter(config)
    params = adapter.init(jax.random.key(0), hint)
    np.testing.assert_array_equal(adapter.apply(params, hint), 0)
    assert np.any(params["params"]["convs_2"]["kernel"])


def test_adapter_that_is_too_short_says_what_to_change() -> None:
    config = dataclasses.replace(presets.sd15(), hint=HintConfig(adapter_channels=(16,)))
    with pytest.raises(ValueError, match=r"hint\.adapter_channels: 2 convolutions cannot halve the hint 3 times"):
        jax.eval_shape(HintAdapter(config).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_features_of_sd15_at_512_pixels() -> None:
    config = presets.sd15().unet
    inputs = (
        jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, 257, 768), jnp.float32),
    )
    features, _ = jax.eval_shape(HintEncoder(config).init_with_output, jax.random.key(0), *inputs)
    assert [feature.shape[1:] for feature in features] == (
        [(64, 64, 320)] * 3 + [(32, 32, 320)] + [(32, 32, 640)] * 2 + [(16, 16, 640)]
        + [(16, 16, 1280)] * 2 + [(8, 8, 1280)] * 4
    )  # fmt: skip


def test_encoder_never_sees_the_noisy_latents() -> None:
    assert list(inspect.signature(HintEncoder.__call__).parameters) == ["self", "inputs", "timesteps", "tokens"]


def test_replica_makes_the_unets_features() -> None:
    """With everything but the noisy latents zero, the U-Net's encoder and its replica agree."""
    latent_channels = 4
    generator = np.random.default_rng(1)
    latents = generator.standard_normal((1, 4, 6, latent_channels), dtype=np.float32)
    inputs = np.pad(latents, ((0, 0), (0, 0), (0, 0), (0, UNET.in_channels - latent_channels)))
    tokens = generator.standard_normal((1, 3, 6), dtype=np.float32)
    timesteps = np.array([500])
    model = UNet2DConditionModel(UNET)
    unet = random_tree(jax.eval_shape(model.init, jax.random.key(0), inputs, timesteps, tokens)["params"])
    replica = replicate_encoder(unet, latent_channels)
    shapes = jax.eval_shape(HintEncoder(UNET).init, jax.random.key(0), latents, timesteps, tokens)["params"]
    assert jax.tree.map(jnp.shape, replica) == jax.tree.map(jnp.shape, shapes)

    def encode(model: UNet2DConditionModel, inputs: Array, timesteps: Array, tokens: Array) -> tuple[Array, ...]:
        temb = model.embed_time(timesteps)
        x, skips = model.encode(inputs, temb, tokens)
        return (*skips, model.middle(x, temb, tokens))

    expected = jax.jit(lambda p: model.apply({"params": p}, inputs, timesteps, tokens, method=encode))(unet)
    actual = jax.jit(lambda p: HintEncoder(UNET).apply({"params": p}, latents, timesteps, tokens))(replica)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_replica_shares_no_memory_with_the_original() -> None:
    unet = {"conv_in": {"kernel": np.ones((3, 3, 9, 4), np.float32)}, "mid_block": {"x": {"bias": np.ones(2)}}}
    replica = replicate_encoder(unet, 4)
    for leaf in jax.tree.leaves(replica):
        leaf[...] = 0
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(unet))
