"""AlexNet's convolutions (Krizhevsky, 2014, arXiv:1404.5997, one tower): features that LPIPS compares.

Parameter names follow torchvision (torchvision/models/alexnet.py): `features.0` is `features_0`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import AlexNetConfig
from dtc_jax.models.inception import max_pool_3x3
from dtc_jax.models.inputs import normalize_imagenet
from dtc_jax.models.layers import Conv2d

LAYERS = (0, 3, 6, 8, 10)
"""torchvision's indices of the convolutions."""
SMALLEST_IMAGE = 31
"""Pixels on each side: 7 after the first convolution, 3 and 1 after the poolings. (torchvision pools once more.)"""


class AlexNet(nn.Module):
    """The convolutional part of AlexNet.

    Attributes:
        config: Channels.
        dtype: Type of the arithmetic and of the features.
    """

    config: AlexNetConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        first, second, *others = self.config.channels
        self.convolutions = [
            Conv2d(first, kernel_size=11, stride=4, padding=2, dtype=self.dtype, name="features_0"),
            Conv2d(second, kernel_size=5, padding=2, dtype=self.dtype, name="features_3"),
            *(
                Conv2d(channels, dtype=self.dtype, name=f"features_{index}")
                for channels, index in zip(others, LAYERS[2:], strict=True)
            ),
        ]

    def block_outputs(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b hi wi ci"]]:
        """Post-ReLU features of every convolution, before the pooling where there is one.

        Args:
            images: RGB in [0, 1], at least `SMALLEST_IMAGE` pixels on each side; normalised here by ImageNet's mean and
                deviation.
        """
        features = []
        x = normalize_imagenet(images).astype(self.dtype)
        for number, convolution in enumerate(self.convolutions):
            if number in (1, 2):
                x = max_pool_3x3(x, stride=2)
            x = nn.relu(convolution(x))
            features.append(x)
        return features
