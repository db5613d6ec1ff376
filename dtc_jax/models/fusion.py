"""How hint features enter the main U-Net, on every skip and on the middle (paper 3.2 and table 1).

FiLM (Perez et al., 2018), addition through zero convolutions (ControlNet; Zhang et al., 2023), or cross-attention. Each
has two halves: what it makes of the hint's features, which a sampler computes before its loop (`Fusion.__call__`), and
what that does to a feature of the U-Net (`modulate`; for cross-attention `Fusion.attend`). Zeros in place of the first
are no fusion at all, whatever the kind: so a hint is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import FusionConfig
from dtc_jax.models.attention import attention
from dtc_jax.models.layers import Conv2d, Dense, GroupNorm, merge_heads, repeat_rows, split_heads

Feature = Float[Array, "_ _ _ _"]
Modulation = tuple[Float[Array, "m _ _ _"], Float[Array, "m _ _ _"]]
"""What a fusion makes of one place's hint feature: gamma and beta [m, h or 1, w or 1, c or 1] of `modulate`, or the
keys and values [m, length, heads, d] of `CrossAttention`."""
Fuse = Callable[[Feature], Feature]


def modulate(x: Float[Array, "b h w c"], modulation: Modulation) -> Float[Array, "b2 h w c"]:
    """(1 + gamma) * x + beta, in float32, returned in x's type; of fewer rows each serves several (`repeat_rows`)."""
    rows = max(x.shape[0], modulation[0].shape[0])
    gamma, beta = (repeat_rows(part.astype(jnp.float32), rows) for part in modulation)
    return ((1 + gamma) * repeat_rows(x.astype(jnp.float32), rows) + beta).astype(x.dtype)


def keep_modulations(modulations: Sequence[Modulation], keep: Float[Array, " b"]) -> list[Modulation]:
    """Skip the fusion of some samples.

    Args:
        modulations: Of the whole batch.
        keep: 1 keeps a sample's modulation, 0 makes it the identity: the hint is dropped.
    """

    def masked(part: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return part * keep.astype(part.dtype)[:, None, None, None]

    return jax.tree.map(masked, list(modulations))


class FiLM(nn.Module):
    """gamma and beta of one place from its hint feature: 1x1 convolutions that start at zero, hence as the identity.

    Attributes:
        features: Channels of the feature that is modulated.
        pooled: One gamma and beta per channel from the average over the image instead of one per pixel.
        dtype: Type of the arithmetic.
    """

    features: int
    pooled: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.gamma = Conv2d(self.features, kernel_size=1, padding=0, zero_init=True, dtype=self.dtype)
        self.beta = Conv2d(self.features, kernel_size=1, padding=0, zero_init=True, dtype=self.dtype)

    def __call__(self, hint: Float[Array, "b h w hint"]) -> Modulation:
        if self.pooled:
            hint = hint.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
        return self.gamma(hint), self.beta(hint)


class Addition(nn.Module):
    """What is added to one place's feature: a 1x1 convolution of its hint feature that starts at zero (ControlNet).

    Attributes:
        features: Channels of the feature that it is added to.
        dtype: Type of the arithmetic.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.zero_conv = Conv2d(self.features, kernel_size=1, padding=0, zero_init=True, dtype=self.dtype)

    def __call__(self, hint: Float[Array, "b h w hint"]) -> Modulation:
        """As FiLM with a gamma of zero."""
        return jnp.zeros((hint.shape[0], 1, 1, 1), self.dtype), self.zero_conv(hint)


class CrossAttention(nn.Module):
    """A feature attends to its place's hint feature: x + to_out(attention(norm(x), norm_hint(hint))).

    `to_out` starts at zero. Nothing after the values has a bias: values of zero add nothing.

    Attributes:
        features: Channels of the feature that attends.
        num_heads: Attention heads.
        num_groups: Groups of both norms.
        dtype: Type of the arithmetic.
    """

    features: int
    num_heads: int
    num_groups: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm = GroupNorm(self.num_groups, 1e-6, self.dtype)
        self.norm_hint = GroupNorm(self.num_groups, 1e-6, self.dtype)
        self.to_q = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_k = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_v = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_out = Dense(self.features, use_bias=False, zero_init=True, dtype=self.dtype)

    def __call__(self, hint: Float[Array, "b h w hint"]) -> Modulation:
        """Keys and values [b, h * w, heads, d] of the hint feature."""
        normed = self.norm_hint(hint)
        context = normed.reshape(hint.shape[0], -1, hint.shape[-1])
        parts = split_heads(self.to_k(context), self.num_heads), split_heads(self.to_v(context), self.num_heads)
        if self.is_initializing():
            self.attend(hint, parts)  # has parameters, too
        return parts

    def attend(self, x: Float[Array, "b h w c"], keys_values: Modulation) -> Float[Array, "b2 h w c"]:
        """The feature with what it finds in the hint; of fewer rows each serves several (`repeat_rows`)."""
        rows = max(x.shape[0], keys_values[0].shape[0])
        query = split_heads(self.to_q(self.norm(x).reshape(x.shape[0], -1, x.shape[-1])), self.num_heads)
        key, value = (repeat_rows(part, rows) for part in keys_values)
        mixed = self.to_out(merge_heads(attention(repeat_rows(query, rows), key, value)))
        return repeat_rows(x, rows) + mixed.reshape(rows, *x.shape[1:]).astype(x.dtype)


class Fusion(nn.Module):
    """Layers `skips_0` ... `skips_N` and `middle` of one kind: `FiLM`, `Addition` or `CrossAttention`.

    Attributes:
        config: Kind of fusion.
        channels: Of every skip and of the middle, as `dtc_jax.models.unet.feature_channels` lists them.
        dtype: Type of the arithmetic.
        num_heads: Of cross-attention: heads.
        num_groups: Of cross-attention: groups of its norms.
    """

    config: FusionConfig
    channels: tuple[int, ...]
    dtype: DTypeLike = jnp.float32
    num_heads: int = 1
    num_groups: int = 1

    def setup(self) -> None:
        self.skips = [self._layer(features) for features in self.channels[:-1]]
        self.middle = self._layer(self.channels[-1])

    def _layer(self, features: int) -> FiLM | Addition | CrossAttention:
        if self.config.kind == "addition":
            return Addition(features, self.dtype)
        if self.config.kind == "cross_attention":
            return CrossAttention(features, self.num_heads, self.num_groups, self.dtype)
        return FiLM(features, self.config.pooled, self.dtype)

    def __call__(self, features: Sequence[Feature]) -> list[Modulation]:
        """Modulations of every skip and the middle from the hint encoder's features, in the same order."""
        layers = (*self.skips, self.middle)
        return [layer(feature) for layer, feature in zip(layers, features, strict=True)]

    def attend(self, x: Feature, keys_values: Modulation, index: int) -> Feature:
        """Of cross-attention: the second half at one place, counted as `channels`."""
        return (*self.skips, self.middle)[index].attend(x, keys_values)
