"""Spatial transformer of the U-Net: self-attention, cross-attention to tokens, GEGLU (Rombach et al., 2022, 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.models.attention import attention
from dtc_jax.models.layers import Conv2d, Dense, GroupNorm, LayerNorm, merge_heads, repeat_rows, split_heads

KeysValues = tuple[Float[Array, "b k heads d"], Float[Array, "b k heads d"]]


class Context(NamedTuple):
    """What a cross-attention makes of the tokens, the same at every step of a sampling loop: computed once."""

    keys_values: KeysValues
    """Of each case's tokens; the images of a case share them."""
    null: Float[Array, "images 1 c"] | KeysValues | None
    """The layer's output, for each image, where all tokens are the null vector: equal values mixed in any proportion
    are that value, so that there is nothing to attend to. Of null tokens that differ (an empty prompt's), their keys
    and values, for each image. None: there are no unconditional rows."""


Tokens = Float[Array, "b k d"] | Context
"""The conditioning of a cross-attention: tokens, one set for each row of the batch; or their `Context`. With a null in
it the output has two rows for each image, conditional and unconditional; an input of one row for each is the same in
both branches so far."""


class Attention(nn.Module):
    """Multi-head attention with diffusers' names: to_q, to_k, to_v and to_out_0.

    Keys and values are a method of their own: those of the tokens are the same at every step of a sampling loop.

    Attributes:
        features: Channels of the queries and of the output.
        num_heads: Heads; each has features / num_heads channels.
        dtype: Type of the arithmetic.
        use_bias: Biases in to_q, to_k and to_v; the U-Net has none.
    """

    features: int
    num_heads: int
    dtype: DTypeLike = jnp.float32
    use_bias: bool = False

    def setup(self) -> None:
        self.to_q = Dense(self.features, use_bias=self.use_bias, dtype=self.dtype)
        self.to_k = Dense(self.features, use_bias=self.use_bias, dtype=self.dtype)
        self.to_v = Dense(self.features, use_bias=self.use_bias, dtype=self.dtype)
        self.to_out = [Dense(self.features, dtype=self.dtype)]

    def keys_values(self, context: Float[Array, "b k c"]) -> KeysValues:
        """Keys and values of the context, heads split."""
        return split_heads(self.to_k(context), self.num_heads), split_heads(self.to_v(context), self.num_heads)

    def context(self, tokens: Float[Array, "cases k d"], null: Float[Array, "images n d"] | None) -> Context:
        """What `attend_context` needs of tokens and of the null tokens, of which one stands for any number."""
        if null is None:
            return Context(self.keys_values(tokens), None)
        several = null.shape[1] > 1
        return Context(self.keys_values(tokens), self.keys_values(null) if several else self.to_out[0](self.to_v(null)))

    def attend_context(self, x: Float[Array, "b q c"], context: Context) -> Float[Array, "b2 q c"]:
        """Attend from conditional rows to their case's tokens; unconditional ones attend to null tokens that differ,
        and have nothing to attend to where there is one null vector."""
        rows, length, channels = x.shape
        images = rows if context.null is None else jax.tree.leaves(context.null)[0].shape[0]
        branches = x.reshape(images, -1, length, channels)
        conditional = branches[:, 0]
        # The images of one case are more queries of one attention.
        cases = context.keys_values[0].shape[0]
        output = self.attend(conditional.reshape(cases, -1, channels), context.keys_values)
        output = output.reshape(images, length, channels)
        if context.null is None:
            return output
        if isinstance(context.null, tuple):
            null = self.attend(branches[:, -1], context.null)
        else:
            null = jnp.broadcast_to(context.null, output.shape)
        return jnp.stack([output, null], axis=1).reshape(-1, length, channels)

    def attend(self, x: Float[Array, "b q c"], keys_values: KeysValues) -> Float[Array, "b q c"]:
        """Attend from `x` to given keys and values."""
        query = split_heads(self.to_q(x), self.num_heads)
        return self.to_out[0](merge_heads(attention(query, *keys_values)))

    def __call__(self, x: Float[Array, "b q c"], tokens: Tokens) -> Float[Array, "b2 q c"]:
        """Attend from `x` to `tokens`, or to what was made of them."""
        if isinstance(tokens, Context):
            return self.attend_context(x, tokens)
        return self.attend(x, self.keys_values(tokens))


class GEGLU(nn.Module):
    """value * gelu(gate), both from one projection; exact gelu (Shazeer, 2020)."""

    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.proj = Dense(2 * self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l d"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back; names net_0/proj and net_2 (net_1 is a dropout that is never on)."""

    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.net_0 = GEGLU(4 * self.features, self.dtype)
        self.net_2 = Dense(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        return self.net_2(self.net_0(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the tokens and feed-forward, each after a LayerNorm and residual."""

    features: int
    num_heads: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm1 = LayerNorm(dtype=self.dtype)
        self.attn1 = Attention(self.features, self.num_heads, self.dtype)
        self.norm2 = LayerNorm(dtype=self.dtype)
        self.attn2 = Attention(self.features, self.num_heads, self.dtype)
        self.norm3 = LayerNorm(dtype=self.dtype)
        self.ff = FeedForward(self.features, self.dtype)

    def __call__(self, x: Float[Array, "b q c"], tokens: Tokens) -> Float[Array, "b2 q c"]:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        mixed = self.attn2(self.norm2(x), tokens)
        x = repeat_rows(x, mixed.shape[0]) + mixed
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map, between 1x1 convolutions; residual.

    diffusers' `Transformer2DModel` with one block and `use_linear_projection=False`.

    Attributes:
        features: Channels in and out.
        num_heads: Attention heads.
        num_groups: Groups of the norm before it, whose epsilon is 1e-6 (1e-5 in the ResNet blocks).
        dtype: Type of the arithmetic.
    """

    features: int
    num_heads: int
    num_groups: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm = GroupNorm(self.num_groups, 1e-6, self.dtype)
        self.proj_in = Conv2d(self.features, kernel_size=1, padding=0, dtype=self.dtype)
        self.transformer_blocks = [TransformerBlock(self.features, self.num_heads, self.dtype)]
        self.proj_out = Conv2d(self.features, kernel_size=1, padding=0, dtype=self.dtype)

    def context(self, tokens: Float[Array, "cases k d"], null: Float[Array, "images n d"] | None) -> Context:
        """The cross-attention's `Context`."""
        return self.transformer_blocks[0].attn2.context(tokens, null)

    def __call__(self, x: Float[Array, "b h w c"], tokens: Tokens) -> Float[Array, "b2 h w c"]:
        batch, height, width, channels = x.shape
        hidden = self.proj_in(self.norm(x)).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            hidden = block(hidden, tokens)
        hidden = self.proj_out(hidden.reshape(-1, height, width, channels))
        return repeat_rows(x, hidden.shape[0]) + hidden
