"""The moving average and its warm-up."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dtc_jax.training.ema import ema_decay, update_ema


def test_decay_warms_up() -> None:
    decays = [float(ema_decay(0.9, jnp.int32(updates))) for updates in (0, 1, 10, 80, 81, 1000)]
    np.testing.assert_allclose(decays, [1 / 10, 2 / 11, 11 / 20, 81 / 90, 0.9, 0.9], rtol=1e-6)


def test_update_is_a_weighted_mean() -> None:
    random = np.random.default_rng(0)
    ema = {name: random.normal(size=(3, 2)).astype(np.float32) for name in "ab"}
    params = {name: random.normal(size=(3, 2)).astype(np.float32) for name in "ab"}
    result = update_ema(ema, params, jnp.float32(0.7))
    for name in "ab":
        np.testing.assert_allclose(result[name], 0.7 * ema[name] + 0.3 * params[name], rtol=1e-6, atol=1e-7)
        assert result[name].dtype == jnp.float32
