"""From the reference encoder's tokens to the cross-attention's, and the null tokens of classifier-free guidance."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from dtc_jax.config import ModelConfig
from dtc_jax.models.layers import Dense
from dtc_jax.models.paint_by_example import PaintByExampleProjection


def reference_projection(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Dense | PaintByExampleProjection:
    """From an image encoder's width to the cross-attention's: one dense layer (paper 5.2), or Paint by Example's
    mapper."""
    width = config.unet.cross_attention_dim
    if config.reference.projection == "dense":
        return Dense(width, dtype=dtype)
    layers = config.reference.mapper_layers
    return PaintByExampleProjection(config.reference_encoder.hidden_size, layers, width, dtype)


def drop_tokens(
    tokens: Float[Array, "b l d"], null: Float[Array, "1 n d"], keep: Float[Array, " b"]
) -> Float[Array, "b l d"]:
    """Replace all tokens of some samples with the null tokens.

    Args:
        tokens: Of the references, or of prompts.
        null: One learned vector, the same at every position (as in Paint by Example); or the empty prompt's tokens.
        keep: 1 keeps a sample's tokens, 0 replaces them.
    """
    return jnp.where(keep[:, None, None] > 0, tokens, null.astype(tokens.dtype))


def null_like(tokens: Float[Array, "b l d"], null: Float[Array, "1 n d"]) -> Float[Array, "b l d"]:
    """The null tokens in the shape of `tokens`, for the unconditional branch."""
    return jnp.broadcast_to(null.astype(tokens.dtype), tokens.shape)


def choose_prompts(
    product: Float[Array, "1 l d"], class_prompt: Float[Array, "1 l d"], prior: Num[Array, " b"]
) -> Float[Array, "b l d"]:
    """Each sample's prompt.

    Args:
        product: Tokens of the prompt that stands for the product.
        class_prompt: Tokens of the one that stands for any product of its class.
        prior: 1 for a picture of the class, 0 for a photo of the product.
    """
    return jnp.where(prior[:, None, None] > 0, class_prompt, product)
