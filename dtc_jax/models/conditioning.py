"""From the reference encoder's tokens to the cross-attention's, and the null tokens of classifier-free guidance."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import ModelConfig
from dtc_jax.models.layers import Dense
from dtc_jax.models.paint_by_example import PaintByExampleProjection


def reference_projection(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Dense | PaintByExampleProjection:
    """From the reference encoder's width to the cross-attention's: one dense layer (paper 5.2), or Paint by Example's
    mapper."""
    width = config.unet.cross_attention_dim
    if config.reference.projection == "dense":
        return Dense(width, dtype=dtype)
    layers = config.reference.mapper_layers
    return PaintByExampleProjection(config.reference_encoder.hidden_size, layers, width, dtype)


def drop_tokens(
    tokens: Float[Array, "b l d"], null: Float[Array, "1 1 d"], keep: Float[Array, " b"]
) -> Float[Array, "b l d"]:
    """Replace all tokens of some samples with the one learned null vector.

    Args:
        tokens: Of the references.
        null: The null vector, the same at every position (as in Paint by Example).
        keep: 1 keeps a sample's tokens, 0 replaces them.
    """
    return jnp.where(keep[:, None, None] > 0, tokens, null.astype(tokens.dtype))


def null_like(tokens: Float[Array, "b l d"], null: Float[Array, "1 1 d"]) -> Float[Array, "b l d"]:
    """The null vector at every position of `tokens`, for the unconditional branch."""
    return jnp.broadcast_to(null.astype(tokens.dtype), tokens.shape)
