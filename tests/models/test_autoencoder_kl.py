"""AutoencoderKL: shapes, precision, options, posterior, scaling."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import AutoencoderKLConfig
from dtc_jax.models.autoencoder_kl import AutoencoderKL, sample_posterior, scale, unscale

CONFIG = presets.test().vae
IMAGES = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)


def shapes_of(model: AutoencoderKL) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_types(dtype: Any) -> None:
    model = AutoencoderKL(CONFIG, dtype)
    variables = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    mean, logvar = jax.eval_shape(partial(model.apply, method="encode"), variables, IMAGES)
    assert mean.shape == logvar.shape == (2, 4, 6, 4)
    decoded = jax.eval_shape(partial(model.apply, method="decode"), variables, mean)
    assert decoded.shape == IMAGES.shape
    assert {mean.dtype, logvar.dtype, decoded.dtype} == {jnp.dtype("float32")}


def test_factor_is_that_of_the_config() -> None:
    config = AutoencoderKLConfig(latent_channels=8, block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=2)
    model = AutoencoderKL(config)
    variables = shapes_of(model)
    mean, _ = jax.eval_shape(partial(model.apply, method="encode"), variables, IMAGES)
    assert config.factor == 4
    assert mean.shape == (2, 2, 3, 8)


def test_middle_attention_is_optional() -> None:
    with_attention = shapes_of(AutoencoderKL(CONFIG))["params"]
    without = shapes_of(AutoencoderKL(dataclasses.replace(CONFIG, mid_block_add_attention=False)))["params"]
    for part in ("encoder", "decoder"):
        assert set(with_attention[part]["mid_block"]) - set(without[part]["mid_block"]) == {"attentions_0"}


def test_call_decodes_the_mode_and_gradients_reach_every_parameter() -> None:
    model = AutoencoderKL(CONFIG)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes_of(model))
    images = generator.uniform(-1, 1, IMAGES.shape).astype(np.float32)

    @jax.jit
    def run(variables, images):
        mean, _ = model.apply(variables, images, method="encode")
        composed = model.apply(variables, mean, method="decode")

        def loss(variables):
            _, logvar = model.apply(variables, images, method="encode")
            return jnp.sum(model.apply(variables, images) * images) + jnp.sum(logvar)

        return model.apply(variables, images), composed, jax.grad(loss)(variables)

    direct, composed, gradients = run(variables, images)
    np.testing.assert_allclose(direct, composed, rtol=1e-5, atol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.all(np.isfinite(gradient)), name
        # A constant added to every key of an attention leaves its softmax as it is.
        if not name.endswith("to_k/bias"):
            assert np.any(gradient != 0), name


def test_encode_refuses_sizes_that_do_not_divide() -> None:
    model = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(4, 8, 8), norm_num_groups=2))
    with pytest.raises(ValueError, match="divisible by 4, not 8x10"):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 10, 3), jnp.float32))


def test_posterior_sample_belongs_to_its_key() -> None:
    keys = jax.random.split(jax.random.key(3), 3)
    shape = (3, 2, 3, 4)
    mean = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    logvar = jnp.full(shape, 2 * np.log(0.5), jnp.float32)
    sample = sample_posterior(keys, mean, logvar)
    noise = np.stack([jax.random.normal(key, shape[1:]) for key in keys])
    np.testing.assert_allclose(sample, mean + 0.5 * noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sample_posterior(keys[1:], mean[1:], logvar[1:]), sample[1:], rtol=1e-6)


def test_scale_multiplies_and_unscale_inverts() -> None:
    config = AutoencoderKLConfig()
    latents = jnp.linspace(-20, 20, 12).reshape(1, 2, 3, 2)
    np.testing.assert_allclose(scale(latents, config), latents * 0.18215, rtol=1e-6)
    np.testing.assert_allclose(unscale(scale(latents, config), config), latents, rtol=1e-6)
