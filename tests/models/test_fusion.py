"""FiLM: the formula, its start as the identity, and dropping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.config import FusionConfig
from dtc_jax.models.fusion import FiLM, Fusion, keep_modulations, modulate


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_modulate_is_scale_and_shift() -> None:
    x, gamma, beta = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1), random(2, 3, 4, 5, seed=2)
    np.testing.assert_allclose(modulate(x, (gamma, beta)), (1 + gamma) * x + beta, rtol=1e-6)


def test_modulate_computes_in_float32_and_keeps_the_type() -> None:
    x = jnp.full((1, 1, 1, 1), 256.0, jnp.bfloat16)
    # 1 + 2^-8 is not a bfloat16: rounded before the product, nothing would be left of gamma.
    small = jnp.full((1, 1, 1, 1), 2.0**-8, jnp.bfloat16)
    result = modulate(x, (small, jnp.ones((1, 1, 1, 1), jnp.bfloat16)))
    assert result.dtype == jnp.bfloat16
    assert float(result[0, 0, 0, 0]) == 258.0


@pytest.mark.parametrize("pooled", [False, True])
def test_a_new_layer_is_exactly_the_identity(pooled: bool) -> None:
    layer = FiLM(3, pooled)
    hint, x = random(2, 4, 6, 5), random(2, 4, 6, 3, seed=1)
    params = layer.init(jax.random.key(0), hint)
    assert set(params["params"]) == {"gamma", "beta"}
    np.testing.assert_array_equal(modulate(x, layer.apply(params, hint)), x)


@pytest.mark.parametrize("pooled", [False, True])
def test_layer_is_a_linear_map_of_the_hint(pooled: bool) -> None:
    hint = random(2, 4, 6, 5)
    params = {
        name: {"kernel": random(1, 1, 5, 3, seed=seed), "bias": random(3, seed=seed + 10)}
        for seed, name in enumerate(("gamma", "beta"), start=1)
    }
    gamma, beta = FiLM(3, pooled).apply({"params": params}, hint)
    source = hint.mean(axis=(1, 2), keepdims=True) if pooled else hint
    for actual, part in ((gamma, params["gamma"]), (beta, params["beta"])):
        assert actual.shape == ((2, 1, 1, 3) if pooled else (2, 4, 6, 3))
        np.testing.assert_allclose(actual, source @ part["kernel"][0, 0] + part["bias"], rtol=1e-4, atol=1e-5)


def test_fusion_has_a_layer_per_skip_and_one_for_the_middle() -> None:
    features = [random(1, 4, 4, 3), random(1, 2, 2, 5), random(1, 2, 2, 7)]
    fusion = Fusion(FusionConfig(), channels=(3, 5, 7))
    params = jax.eval_shape(fusion.init, jax.random.key(0), features)["params"]
    assert set(params) == {"skips_0", "skips_1", "middle"}
    assert params["middle"]["gamma"]["kernel"].shape == (1, 1, 7, 7)
    modulations = jax.eval_shape(lambda p: fusion.apply({"params": p}, features), params)
    assert [gamma.shape for gamma, _ in modulations] == [feature.shape for feature in features]
    with pytest.raises(ValueError):
        jax.eval_shape(lambda p: fusion.apply({"params": p}, features[:2]), params)


def test_a_dropped_hint_leaves_its_sample_alone() -> None:
    x = random(2, 3, 3, 4)
    modulations = [(random(2, 3, 3, 4, seed=1), random(2, 3, 3, 4, seed=2))]
    (kept,) = keep_modulations(modulations, jnp.array([1.0, 0.0]))
    result = modulate(x, kept)
    np.testing.assert_array_equal(result[1], x[1])
    np.testing.assert_array_equal(result[0], modulate(x, modulations[0])[0])
