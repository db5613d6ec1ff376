"""Layers against their definitions in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.models.layers import GroupNorm

GROUPS, EPSILON = 4, 1e-5


def _expected(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    grouped = x.astype(np.float64).reshape(*x.shape[:-1], GROUPS, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_group_norm_is_its_definition_also_where_the_mean_is_large(offset: float) -> None:
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(2, 6, 5, 8)) + offset).astype(np.float32)
    scale, bias = generator.normal(size=(2, 8)).astype(np.float32)
    module = GroupNorm(GROUPS, EPSILON)
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}

    def apply(x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x)

    expected = _expected(x, scale, bias)
    # At 1000 standard deviations float32 resolves the input itself to 6e-5 of them.
    tolerance = 1e-6 if offset == 0 else 3e-4
    np.testing.assert_allclose(apply(jnp.asarray(x)), expected, atol=tolerance * 5)

    # The directional derivative, by central differences in float64.
    direction, weight = generator.normal(size=(2, *x.shape))
    step = 1e-4
    ahead, behind = (_expected(x + sign * step * direction, scale, bias) for sign in (1, -1))
    slope = (weight * (ahead - behind)).sum() / (2 * step)
    gradient = jax.grad(lambda x: (apply(x) * weight.astype(np.float32)).sum())(jnp.asarray(x))
    assert float((np.asarray(gradient, np.float64) * direction).sum()) == pytest.approx(slope, rel=1e-3)
