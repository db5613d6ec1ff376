"""InceptionV3 (Szegedy et al., 2015, arXiv:1512.00567) as the Frechet inception distance uses it.

This is the network of TensorFlow's FID (Heusel et al., 2017, arXiv:1706.08500) in pytorch-fid's port: average pooling
leaves padding out of its mean, the last block pools by maximum, and there are 1008 classes. Sources:
mseitzer/pytorch-fid, src/pytorch_fid/inception.py at b9c18118d082cbd263c1b8963fc4221dc1cbb659, over pytorch/vision,
torchvision/models/inception.py at 02a0a90b7ad1e9d69f1f392ad6701eb069f7db02. Module names follow them.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import InceptionConfig
from dtc_jax.models.layers import Conv2d, Dense
from dtc_jax.models.resize import resize_bilinear

IMAGE_SIZE = 299
_EPSILON = 1e-3


class BatchNorm(nn.Module):
    """Batch normalisation with stored statistics, as `torch.nn.BatchNorm2d` in evaluation; never trained here."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.param("running_mean", nn.initializers.zeros, shape, jnp.float32)
        variance = self.param("running_var", nn.initializers.ones, shape, jnp.float32)
        gain = scale * jax.lax.rsqrt(variance + _EPSILON)
        return ((x.astype(jnp.float32) - mean) * gain + bias).astype(self.dtype)


class BasicConv2d(nn.Module):
    """Convolution without a bias, batch normalisation, ReLU.

    Attributes:
        features: Output channels.
        kernel_size: (height, width) of the kernel.
        stride: Step along height and width.
        same: Pad so that stride 1 keeps height and width; otherwise no padding.
        dtype: Type of the arithmetic.
    """

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    same: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        rows, columns = (size // 2 if self.same else 0 for size in self.kernel_size)
        self.conv = Conv2d(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=((rows, rows), (columns, columns)),
            use_bias=False,
            dtype=self.dtype,
        )
        self.bn = BatchNorm(self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return nn.relu(self.bn(self.conv(x)))


def _convolver(divisor: int, dtype: DTypeLike) -> Callable[..., Array]:
    """A function that makes and applies a named convolution in the block that calls it, its channels divided."""

    def convolve(x: Array, name: str, channels: int, kernel_size: tuple[int, int] = (1, 1), stride: int = 1) -> Array:
        return BasicConv2d(channels // divisor, kernel_size, stride, stride == 1, dtype, name=name)(x)

    return convolve


class InceptionA(nn.Module):
    """1x1, 5x5, two 3x3 and pooling, side by side (Mixed_5b to Mixed_5d)."""

    divisor: int
    dtype: DTypeLike
    pool_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        conv = _convolver(self.divisor, self.dtype)
        five = conv(conv(x, "branch5x5_1", 48), "branch5x5_2", 64, (5, 5))
        double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        branches = [
            conv(x, "branch1x1", 64),
            five,
            conv(double, "branch3x3dbl_3", 96, (3, 3)),
            conv(average_pool_3x3(x), "branch_pool", self.pool_features),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """The first halving of the resolution (Mixed_6a)."""

    divisor: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        conv = _convolver(self.divisor, self.dtype)
        double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        branches = [
            conv(x, "branch3x3", 384, (3, 3), stride=2),
            conv(double, "branch3x3dbl_3", 96, (3, 3), stride=2),
            max_pool_3x3(x, stride=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """7x7 convolutions as 1x7 and 7x1 (Mixed_6b to Mixed_6e)."""

    divisor: int
    dtype: DTypeLike
    channels_7x7: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        conv, width = _convolver(self.divisor, self.dtype), self.channels_7x7
        seven = conv(conv(x, "branch7x7_1", width), "branch7x7_2", width, (1, 7))
        double = conv(x, "branch7x7dbl_1", width)
        for number, kernel_size in ((2, (7, 1)), (3, (1, 7)), (4, (7, 1))):
            double = conv(double, f"branch7x7dbl_{number}", width, kernel_size)
        branches = [
            conv(x, "branch1x1", 192),
            conv(seven, "branch7x7_3", 192, (7, 1)),
            conv(double, "branch7x7dbl_5", 192, (1, 7)),
            conv(average_pool_3x3(x), "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """The second halving of the resolution (Mixed_7a)."""

    divisor: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        conv = _convolver(self.divisor, self.dtype)
        seven = conv(conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, (1, 7))
        seven = conv(seven, "branch7x7x3_3", 192, (7, 1))
        branches = [
            conv(conv(x, "branch3x3_1", 192), "branch3x3_2", 320, (3, 3), stride=2),
            conv(seven, "branch7x7x3_4", 192, (3, 3), stride=2),
            max_pool_3x3(x, stride=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """3x3 convolutions split into 1x3 beside 3x1 (Mixed_7b, Mixed_7c)."""

    divisor: int
    dtype: DTypeLike
    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        conv = _convolver(self.divisor, self.dtype)
        three = conv(x, "branch3x3_1", 384)
        double = conv(conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, (3, 3))
        branches = [
            conv(x, "branch1x1", 320),
            conv(three, "branch3x3_2a", 384, (1, 3)),
            conv(three, "branch3x3_2b", 384, (3, 1)),
            conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            conv(self.pool(x), "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
    """FID's InceptionV3. `init` through `logits` makes every parameter.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic; features and logits are float32.
    """

    config: InceptionConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        divisor, dtype = self.config.channel_divisor, self.dtype

        def conv(features: int, size: int, stride: int = 1, same: bool = False) -> BasicConv2d:
            return BasicConv2d(features // divisor, (size, size), stride, same, dtype)

        self.Conv2d_1a_3x3 = conv(32, 3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 3)
        self.Conv2d_2b_3x3 = conv(64, 3, same=True)
        self.Conv2d_3b_1x1 = conv(80, 1)
        self.Conv2d_4a_3x3 = conv(192, 3)
        self.Mixed_5b = InceptionA(divisor, dtype, pool_features=32)
        self.Mixed_5c = InceptionA(divisor, dtype, pool_features=64)
        self.Mixed_5d = InceptionA(divisor, dtype, pool_features=64)
        self.Mixed_6a = InceptionB(divisor, dtype)
        self.Mixed_6b = InceptionC(divisor, dtype, channels_7x7=128)
        self.Mixed_6c = InceptionC(divisor, dtype, channels_7x7=160)
        self.Mixed_6d = InceptionC(divisor, dtype, channels_7x7=160)
        self.Mixed_6e = InceptionC(divisor, dtype, channels_7x7=192)
        self.Mixed_7a = InceptionD(divisor, dtype)
        self.Mixed_7b = InceptionE(divisor, dtype, pool=average_pool_3x3)
        self.Mixed_7c = InceptionE(divisor, dtype, pool=max_pool_3x3)
        self.fc = Dense(self.config.num_classes, dtype=dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b features"]:
        """The features that FID compares: the mean over space of the last block's output (2048), float32.

        Args:
            images: RGB in [0, 1], any size (at least 75 on each side if `config.resize_input` is off).
        """
        x = images.astype(jnp.float32)
        if self.config.resize_input:
            x = resize_bilinear(x, IMAGE_SIZE, IMAGE_SIZE)
        x = (2 * x - 1).astype(self.dtype)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool_3x3(x, stride=2)))
        x = max_pool_3x3(x, stride=2)
        blocks: tuple[Callable[[Array], Array], ...] = (
            *(self.Mixed_5b, self.Mixed_5c, self.Mixed_5d),
            *(self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e),
            *(self.Mixed_7a, self.Mixed_7b, self.Mixed_7c),
        )
        for block in blocks:
            x = block(x)
        return x.astype(jnp.float32).mean(axis=(1, 2))

    def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b classes"]:
        """The classifier's logits, float32, of images as `__call__` takes them."""
        return self.fc(self(images)).astype(jnp.float32)


def max_pool_3x3(x: Float[Array, "b h w c"], stride: int = 1) -> Float[Array, "b h2 w2 c"]:
    """Maximum over 3x3 places: at stride 1 with the border left out, at stride 2 without padding."""
    border = (1, 1) if stride == 1 else (0, 0)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), border, border, (0, 0))
    )


def average_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mean over those of 3x3 places that are inside the map (TensorFlow's, and `count_include_pad=False`)."""
    height, width = x.shape[1:3]
    total = jax.lax.reduce_window(
        x.astype(jnp.float32), 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    count = _neighbours(height)[:, None] * _neighbours(width)[None, :]
    return (total / count[None, :, :, None]).astype(x.dtype)


def _neighbours(size: int) -> Float[np.ndarray, " size"]:
    """How many of the three places round each place are inside."""
    places = np.arange(size)
    return (np.minimum(places + 1, size - 1) - np.maximum(places - 1, 0) + 1).astype(np.float32)
