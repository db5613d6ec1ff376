"""Which conditions a training sample loses, for classifier-free guidance (Ho and Salimans, 2022)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dtc_jax.config import LossConfig


def condition_dropout(u: Float[Array, " b"], config: LossConfig) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """What each sample keeps, as (keep_tokens, keep_hint) of 0 and 1, from one uniform number per sample.

    [0, drop_both) loses both, the next `drop_tokens` only the tokens, the next `drop_hint` only the hint.
    """
    tokens_end = config.drop_both + config.drop_tokens
    no_tokens = u < tokens_end
    no_hint = (u < config.drop_both) | ((u >= tokens_end) & (u < tokens_end + config.drop_hint))
    return jnp.where(no_tokens, 0.0, 1.0), jnp.where(no_hint, 0.0, 1.0)
