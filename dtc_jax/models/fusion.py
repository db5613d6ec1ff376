"""How hint features enter the main U-Net: FiLM on every skip and on the middle (paper 3.2; Perez et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import FusionConfig
from dtc_jax.models.layers import Conv2d, repeat_rows

Feature = Float[Array, "_ _ _ _"]
Modulation = tuple[Float[Array, "m #h #w c"], Float[Array, "m #h #w c"]]


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

    return [(masked(gamma), masked(beta)) for gamma, beta in modulations]


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


class Fusion(nn.Module):
    """FiLM layers `skips_0` ... `skips_N` and `middle`, each with `gamma` and `beta`.

    Attributes:
        config: Kind of fusion.
        channels: Of every skip and of the middle, as `dtc_jax.models.unet.feature_channels` lists them.
        dtype: Type of the arithmetic.
    """

    config: FusionConfig
    channels: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.skips = [FiLM(features, self.config.pooled, self.dtype) for features in self.channels[:-1]]
        self.middle = FiLM(self.channels[-1], self.config.pooled, self.dtype)

    def __call__(self, features: Sequence[Feature]) -> list[Modulation]:
        """Modulations of every skip and the middle from the hint encoder's features, in the same order."""
        layers = (*self.skips, self.middle)
        return [layer(feature) for layer, feature in zip(layers, features, strict=True)]
