"""Convolutional blocks that the U-Net and its autoencoder share: ResNet block, down- and upsampling.

Rombach et al., 2022 (arXiv:2112.10752), with diffusers' parameter names.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.models.layers import Conv2d, Dense, GroupNorm, repeat_rows


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice; the time embedding, if there is one, is added in between; residual.

    diffusers' `ResnetBlock2D` with its names: norm1, conv1, time_emb_proj (with a time embedding), norm2, conv2 and,
    where the number of channels changes, conv_shortcut.

    Attributes:
        features: Output channels.
        num_groups: Groups of both norms.
        dtype: Type of the arithmetic.
        epsilon: Of both norms; the published U-Nets have 1e-5, the autoencoders 1e-6.
    """

    features: int
    num_groups: int
    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Float[Array, "b2 t"] | None = None) -> Float[Array, "b h w d"]:
        """Return the block's output.

        Args:
            x: The feature map.
            temb: Output of the time embedding, of each row or of fewer (`repeat_rows`); None: there is no such input.
        """
        residual = x
        x = nn.silu(GroupNorm(self.num_groups, self.epsilon, self.dtype, name="norm1")(x))
        x = Conv2d(self.features, dtype=self.dtype, name="conv1")(x)
        if temb is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
            x = x + repeat_rows(shift, x.shape[0])[:, None, None, :]
        x = nn.silu(GroupNorm(self.num_groups, self.epsilon, self.dtype, name="norm2")(x))
        x = Conv2d(self.features, dtype=self.dtype, name="conv2")(x)
        if residual.shape[-1] != self.features:
            shortcut = Conv2d(self.features, kernel_size=1, padding=0, dtype=self.dtype, name="conv_shortcut")
            residual = shortcut(residual)
        return residual + x


class Downsample(nn.Module):
    """Half the height and width by a 3x3 convolution of stride 2.

    Attributes:
        features: Output channels.
        dtype: Type of the arithmetic.
        padding: Zeros on every side, or ((top, bottom), (left, right)).
    """

    features: int
    dtype: DTypeLike = jnp.float32
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 1

    def setup(self) -> None:
        self.conv = Conv2d(self.features, stride=2, padding=self.padding, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the height and width by repeating every pixel, then a 3x3 convolution."""

    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.conv = Conv2d(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.conv(nearest_upsample(x))


def nearest_upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Every pixel becomes 2x2 equal ones."""
    batch, height, width, channels = x.shape
    # Not a broadcast: from one, XLA does not learn that the batch is split, and where the next kernel is split over
    # devices too, it gathers the whole batch's pixels on each of them.
    x = jnp.stack([x, x], axis=2).reshape(batch, 2 * height, width, channels)
    return jnp.stack([x, x], axis=3).reshape(batch, 2 * height, 2 * width, channels)
