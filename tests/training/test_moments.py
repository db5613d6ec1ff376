"""Adam with moments in bfloat16, against its float32 self."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtc_jax.config import OptimizerConfig
from dtc_jax.training.moments import random_bits, round_stochastically, scale_by_adam_bfloat16
from dtc_jax.training.optimizer import make_optimizer


def test_rounding_is_to_a_neighbour_and_right_in_the_mean() -> None:
    x = jnp.float32(1.0) + jnp.float32(2**-7) * 0.3  # three tenths of the way between two neighbours
    bits = random_bits((20_000,), "a", jnp.int32(3))
    rounded = round_stochastically(jnp.full((20_000,), x), bits)
    values = np.asarray(rounded, np.float64)
    assert rounded.dtype == jnp.bfloat16 and set(np.unique(values)) == {1.0, 1 + 2**-7}
    assert (values.mean() - 1) / 2**-7 == pytest.approx(0.3, abs=0.015)
    upper = np.asarray(round_stochastically(jnp.full((20_000,), -x), bits >> 16), np.float64)
    assert -(upper.mean() + 1) / 2**-7 == pytest.approx(0.3, abs=0.015)
    # One draw for each moment.
    assert abs(np.corrcoef(values, upper)[0, 1]) < 0.03


def test_what_needs_no_rounding_stays() -> None:
    x = jnp.array([0.0, -0.0, 1.5, -3.0, np.inf, -np.inf, np.nan], jnp.float32)
    rounded = round_stochastically(x, jnp.full(7, 0xFFFF, jnp.uint32))
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), x)


def test_bits_are_those_of_step_path_and_place() -> None:
    bits = np.asarray(random_bits((64, 128), "a", jnp.int32(1)))
    assert len(np.unique(bits)) > 8000
    # Half of each bit are set, whatever the others: between neighbours, steps and paths.
    others = [random_bits((64, 128), "a", jnp.int32(2)), random_bits((64, 128), "b", jnp.int32(1)), np.roll(bits, 1)]
    for other in others:
        differing = np.unpackbits((bits ^ np.asarray(other)).view(np.uint8)).mean()
        assert differing == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(bits, random_bits((64, 128), "a", jnp.int32(1)))
    # A part of a larger array has the bits of its places: they do not depend on how the array is divided.
    np.testing.assert_array_equal(bits.reshape(-1), random_bits((64 * 128,), "a", jnp.int32(1)))


def test_second_moment_follows_float32_in_the_mean() -> None:
    """From 1 to 4 at a thousandth of the difference a step: rounded to the nearest it would not move at all."""
    count, steps = 4096, 700
    kept, exact = scale_by_adam_bfloat16(0.9, 0.999), optax.scale_by_adam(0.9, 0.999)
    params = {"a": jnp.zeros(count)}
    ones = {"a": jnp.ones(count)}
    states = kept.init(params), exact.init(params)
    assert {leaf.dtype for leaf in (states[0].mu["a"], states[0].nu["a"])} == {jnp.dtype("bfloat16")}
    start = (
        states[0]._replace(nu={"a": jnp.ones(count, jnp.bfloat16)}, count=jnp.int32(100_000)),
        states[1]._replace(nu=ones, count=jnp.int32(100_000)),
    )

    @jax.jit
    def run(states: tuple) -> tuple:
        def step(states: tuple, index: jax.Array) -> tuple:
            gradients = {"a": 2.0 * jax.random.normal(jax.random.key(index), (count,))}
            return tuple(t.update(gradients, s)[1] for t, s in zip((kept, exact), states, strict=True)), None

        return jax.lax.scan(step, states, jnp.arange(steps))[0]

    rounded, reference = run(start)
    mean = float(rounded.nu["a"].astype(jnp.float32).mean())
    assert float(reference.nu["a"].mean()) > 2.4
    assert mean == pytest.approx(float(reference.nu["a"].mean()), rel=5e-3)
    error = rounded.nu["a"].astype(jnp.float32) - reference.nu["a"]
    assert float(jnp.abs(error).mean()) < 0.1 * mean
    first = rounded.mu["a"].astype(jnp.float32) - reference.mu["a"]
    assert abs(float(first.mean())) < 1e-3 and float(jnp.abs(first).mean()) < 0.02


def test_training_with_them() -> None:
    """A noisy quadratic bowl: parameters end where float32 moments bring them."""
    target = jnp.linspace(-1, 1, 1000)
    ends = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(
            OptimizerConfig(learning_rate=0.01, moments_dtype=dtype, weight_decay=0.05, max_grad_norm=None), 500
        )
        params = {"kernel": jnp.zeros(1000)}

        def step(carry: tuple, index: jax.Array, optimizer: optax.GradientTransformation = optimizer) -> tuple:
            params, state = carry
            noise = 0.3 * jax.random.normal(jax.random.key(index), (1000,))
            gradients = {"kernel": params["kernel"] - target + noise}
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda carry, step=step: jax.lax.scan(step, carry, jnp.arange(500))[0])
        (params, state) = run((params, optimizer.init(params)))
        ends[dtype] = np.asarray(params["kernel"])
        moments = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert moments == [jnp.dtype(dtype)] * 2
    assert np.abs(ends["float32"] - target).mean() < 0.06
    assert np.abs(ends["bfloat16"] - ends["float32"]).mean() < 0.02
    # Decayed alike.
    slopes = {dtype: np.polyfit(target, end, 1)[0] for dtype, end in ends.items()}
    assert slopes["bfloat16"] == pytest.approx(slopes["float32"], abs=0.01)
