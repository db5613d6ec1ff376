"""Holistically-nested edge detection (Xie and Tu, 2015, arXiv:1504.06375) as ControlNet has it.

Source: `ControlNetHED_Apache2` in lllyasviel/ControlNet, annotator/hed/__init__.py at
ed85cd1e25a5ed592f7d8178495b4483de0331bf. Module names follow it (`block1.convs.0` is `block1/convs_0`).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import HEDConfig
from dtc_jax.models.layers import Conv2d
from dtc_jax.models.resize import resize_bilinear
from dtc_jax.models.vgg import max_pool_2x2


class _Block(nn.Module):
    """3x3 convolutions with ReLUs, and a 1x1 convolution to one edge logit."""

    channels: int
    num_convolutions: int
    dtype: DTypeLike

    def setup(self) -> None:
        self.convs = [Conv2d(self.channels, dtype=self.dtype) for _ in range(self.num_convolutions)]
        self.projection = Conv2d(1, kernel_size=1, padding=0, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w 1"]]:
        for conv in self.convs:
            x = nn.relu(conv(x))
        return x, self.projection(x)


class ControlNetHED(nn.Module):
    """Edges of images.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic; edges are float32.
    """

    config: HEDConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        # The mean of the training images, in 0..255.
        self.norm = self.param("norm", nn.initializers.zeros, (3,), jnp.float32)
        sizes = zip(config.block_channels, config.convolutions_per_block, strict=True)
        self.blocks = [
            _Block(channels, count, self.dtype, name=f"block{number}")
            for number, (channels, count) in enumerate(sizes, start=1)
        ]

    def logits(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b hi wi 1"]]:
        """Edge logits of every block, float32; each half the height and width of the one before, rounded down.

        Args:
            images: RGB in [0, 1].
        """
        x = (images.astype(jnp.float32) * 255 - self.norm).astype(self.dtype)
        results = []
        for number, block in enumerate(self.blocks):
            x, logit = block(max_pool_2x2(x) if number > 0 else x)
            results.append(logit.astype(jnp.float32))
        return results

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
        """Edges in [0, 1], 1 = edge: the sigmoid of the mean of all blocks' logits, resized to the images' size.

        ControlNet's `HEDdetector` stores floor(255 * edges) as its 8-bit result.

        Args:
            images: RGB in [0, 1]; height and width at least 2 to the power of (number of blocks - 1).
        """
        height, width = images.shape[1:3]
        resized = [resize_bilinear(logit, height, width) for logit in self.logits(images)]
        return nn.sigmoid(sum(resized) / len(resized))
