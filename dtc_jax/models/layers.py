"""Layers that every network shares: convolution, dense and norms, with the project's precision rules.

Parameters are float32, arithmetic is in `dtype`, norms are in float32. Names of parameters follow flax
(`kernel`, `bias`, `scale`), so that the conversion from PyTorch is a rule: join, rename, transpose.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.models.convolution import same_convolution


class Conv2d(nn.Module):
    """Convolution over [batch, height, width, channels], as `torch.nn.Conv2d(padding=padding)`.

    Attributes:
        features: Output channels.
        kernel_size: Side of the kernel, or (height, width).
        stride: Step along height and width.
        padding: Zeros on every side, or ((top, bottom), (left, right)).
        zero_init: Start from zeros (ControlNet's zero convolutions) instead of a scaled normal.
        dtype: Type of the arithmetic.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 1
    use_bias: bool = True
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        size = (self.kernel_size,) * 2 if isinstance(self.kernel_size, int) else self.kernel_size
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        padding = self.padding
        if isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))
        x = x.astype(self.dtype)
        if size == (1, 1) and self.stride == 1:
            y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], self.features)
        elif size == (3, 3) and self.stride == 1 and padding == ((1, 1), (1, 1)):
            y = same_convolution(x, kernel)
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride, self.stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y


class Dense(nn.Module):
    """Affine map of the last axis, as `torch.nn.Linear`."""

    features: int
    use_bias: bool = True
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32).astype(self.dtype)
        # Rows in one axis: the gradient's product over two axes of rows is several times slower on CPUs.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = (rows @ kernel).reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y


class GroupNorm(nn.Module):
    """Group normalisation over [batch, height, width, channels] (Wu and He, 2018), statistics in float32.

    Groups are runs of neighbouring channels, as in `torch.nn.GroupNorm`.
    """

    num_groups: int
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, channels = x.shape[0], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        # Per channel first, then over each group's few channels, then one affine map per channel: the feature map is
        # read once for the statistics and once to apply them, and never reshaped. Around one of the channel's own
        # values, so that E[x^2] - E[x]^2 does not cancel where the mean is large; the result does not depend on it.
        x = x.astype(jnp.float32)
        shift = jax.lax.stop_gradient(x[:, :1, :1])
        shifted = x - shift
        shifted_mean = shifted.mean((1, 2))
        variances = jnp.maximum(jnp.square(shifted).mean((1, 2)) - jnp.square(shifted_mean), 0.0)
        means = (shifted_mean + shift[:, 0, 0]).reshape(batch, self.num_groups, -1)
        mean = means.mean(-1)
        variance = variances.reshape(means.shape).mean(-1) + jnp.square(means - mean[..., None]).mean(-1)
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        gain = jnp.repeat(inverse, channels // self.num_groups, axis=-1) * scale
        offset = bias - jnp.repeat(mean, channels // self.num_groups, axis=-1) * gain
        return (x * gain[:, None, None] + offset[:, None, None]).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis, statistics in float32."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        mean = x.mean(axis=-1, keepdims=True)
        variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


def repeat_rows(x: Float[Array, "b ..."], rows: int) -> Float[Array, "b2 ..."]:
    """Each row of the batch several times in a row, up to so many rows.

    Rows of a sampler's batch are nested, branches of guidance in images in cases; where what they hold is the same for
    all of a kind, there is one row for them.
    """
    return x if x.shape[0] == rows else jnp.repeat(x, rows // x.shape[0], axis=0)


def split_heads(x: Float[Array, "b l c"], num_heads: int) -> Float[Array, "b l heads d"]:
    """[batch, length, channels] to [batch, length, heads, channels / heads]."""
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: Float[Array, "b l heads d"]) -> Float[Array, "b l c"]:
    """Inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], -1)
