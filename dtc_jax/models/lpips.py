"""LPIPS (Zhang et al., 2018, arXiv:1801.03924): a distance of images on the features of a classifier, version 0.1.

Source: richzhang/PerceptualSimilarity, lpips/lpips.py at 019657996e5c3310a83dba6a8124e3547ca35a6d. Its scaling layer on
[-1, 1] is ImageNet's mean and deviation on [0, 1].
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import AlexNetConfig, VGGConfig
from dtc_jax.models.alexnet import SMALLEST_IMAGE as ALEXNET_SMALLEST_IMAGE
from dtc_jax.models.alexnet import AlexNet
from dtc_jax.models.layers import Conv2d
from dtc_jax.models.vgg import VGG

_EPSILON = 1e-10


class LPIPS(nn.Module):
    """LPIPS with the features of a VGG-16 or an AlexNet.

    Attributes:
        backbone: Sizes of the network that makes the features, which also says which one it is.
        dtype: Type of the network's arithmetic; the distance is float32.
    """

    backbone: VGGConfig | AlexNetConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if isinstance(self.backbone, VGGConfig):
            self.net: VGG | AlexNet = VGG(self.backbone, dtype=self.dtype)
            levels = len(self.backbone.block_channels)
        else:
            self.net = AlexNet(self.backbone, dtype=self.dtype)
            levels = len(self.backbone.channels)
        self.lin = [Conv2d(1, kernel_size=1, padding=0, use_bias=False) for _ in range(levels)]

    @property
    def smallest_image(self) -> int:
        """Pixels on each side that leave something of an image after every pooling."""
        if isinstance(self.backbone, VGGConfig):
            return int(2 ** (len(self.backbone.block_channels) - 1))
        return ALEXNET_SMALLEST_IMAGE

    def __call__(self, images: Float[Array, "b h w 3"], others: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        """The distance of every image from its other: 0 for equal ones.

        At every level features are normalised to length one over the channels; their squared difference, weighted by
        channel, is averaged over the places; levels are added up.

        Args:
            images: RGB in [0, 1], of at least `smallest_image` pixels on each side.
            others: The same.
        """
        total = jnp.zeros(images.shape[0], jnp.float32)
        for features, head in zip(self.net.block_outputs(jnp.concatenate([images, others])), self.lin, strict=True):
            first, second = jnp.split(unit_length(features), 2)
            total += head(jnp.square(first - second)).mean(axis=(1, 2, 3))
        return total


def unit_length(features: Float[Array, "*places c"]) -> Float[Array, "*places c"]:
    """Features divided by their length over the channels, float32."""
    features = features.astype(jnp.float32)
    return features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + _EPSILON)
