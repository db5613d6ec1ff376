"""Exponential moving average of the parameters, with warm-up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dtc_jax.training.params import FlatParams


def ema_decay(decay: float, updates: Int[Array, ""]) -> Float[Array, ""]:
    """min(d, (1 + n) / (10 + n)) after n updates: an average over the last tenth of a short run."""
    n = updates.astype(jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))


def update_ema(ema: FlatParams, params: FlatParams, decay: Float[Array, ""]) -> FlatParams:
    """ema * d + params * (1 - d), leaf by leaf, in float32."""
    return jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), ema, params)
