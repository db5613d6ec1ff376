"""Learning rate, weight-decay mask, and AdamW with clipping against its equations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtc_jax.config import ConfigError, OptimizerConfig
from dtc_jax.training.optimizer import decay_mask, learning_rate_schedule, make_optimizer


def test_warm_up_then_constant() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=0.4, warmup_steps=4), steps=10)
    rates = [float(schedule(step)) for step in range(10)]
    np.testing.assert_allclose(rates, [0.1, 0.175, 0.25, 0.325] + [0.4] * 6, rtol=1e-6)


def test_cosine_ends_at_a_hundredth_of_the_peak() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=10), steps=50)
    rates = [float(schedule(step)) for step in (10, 20, 30, 50)]
    expected = [2 * (0.01 + 0.99 * (1 + np.cos(np.pi * done)) / 2) for done in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert expected[-1] == pytest.approx(0.02)


def test_linear_ends_at_a_hundredth_of_the_peak() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, schedule="linear", warmup_steps=10), steps=50)
    rates = [float(schedule(step)) for step in (10, 20, 30, 50, 60)]
    np.testing.assert_allclose(rates, [2 * (1 - 0.99 * done) for done in (0, 0.25, 0.5, 1, 1)], rtol=1e-5)


def test_no_warm_up() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1e-5), steps=3)
    assert [float(schedule(step)) for step in range(3)] == pytest.approx([1e-5] * 3)


@pytest.mark.parametrize("warmup", [5, 6])
def test_warm_up_longer_than_the_run(warmup: int) -> None:
    with pytest.raises(ConfigError, match=rf"warmup_steps = {warmup} must be below training.steps = 5"):
        learning_rate_schedule(OptimizerConfig(warmup_steps=warmup), steps=5)


def test_only_kernels_are_decayed() -> None:
    paths = {
        "unet/conv_in/kernel": True,
        "unet/conv_in/bias": False,
        "unet/norm/scale": False,
        "null_tokens/embedding": False,
        "reference_encoder/layer_0/layer_scale1/lambda1": False,
        "fusion/0/kernel": True,
    }
    assert decay_mask(dict.fromkeys(paths, 0)) == paths
    attention = decay_mask({"unet/attn1/to_q/kernel": 0, "unet/conv_in/kernel": 0}, pattern="attn[12]/")
    assert attention == {"unet/attn1/to_q/kernel": True, "unet/conv_in/kernel": False}


def test_mask_must_be_an_expression() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.weight_decay_mask: '\(' is not a regular expression"):
        OptimizerConfig(weight_decay_mask="(")


@pytest.mark.parametrize("max_norm", [0.5, None])
def test_update_against_the_equations(max_norm: float | None) -> None:
    """Loshchilov and Hutter (2019), algorithm 2, after clipping by the norm over all tensors together."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, b1=0.8, b2=0.95, weight_decay=0.3, max_grad_norm=max_norm
    )
    optimizer = make_optimizer(config, steps=5)
    random = np.random.default_rng(0)
    expected = {"a/kernel": random.normal(size=(2, 3)), "a/bias": random.normal(size=3)}
    params = {path: jnp.asarray(value, jnp.float32) for path, value in expected.items()}
    state = optimizer.init(params)
    first = {path: np.zeros_like(value) for path, value in expected.items()}
    second = {path: np.zeros_like(value) for path, value in expected.items()}
    for step, rate in enumerate([0.05, 0.075, 0.1, 0.1], start=1):
        # Growing gradients: clipped ones would be equally long. (Adam forgives one common factor, not several.)
        gradients = {path: step**2 * random.normal(size=value.shape) for path, value in expected.items()}
        updates, state = optimizer.update({p: jnp.asarray(g, jnp.float32) for p, g in gradients.items()}, state, params)
        params = optax.apply_updates(params, updates)

        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        factor = 1.0 if max_norm is None else min(1.0, max_norm / norm)
        for path, gradient in gradients.items():
            first[path] = 0.8 * first[path] + 0.2 * factor * gradient
            second[path] = 0.95 * second[path] + 0.05 * (factor * gradient) ** 2
            direction = (first[path] / (1 - 0.8**step)) / (np.sqrt(second[path] / (1 - 0.95**step)) + 1e-8)
            decay = 0.3 if path == "a/kernel" else 0.0
            expected[path] = expected[path] - rate * (direction + decay * expected[path])
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=1e-5, atol=1e-6)
