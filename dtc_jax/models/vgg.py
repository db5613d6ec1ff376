"""VGG (Simonyan and Zisserman, 2015, arXiv:1409.1556): features for the perceptual loss, and heads to train it with.

Parameter names follow torchvision (`features.0` is `features_0`), whose indices count convolutions, ReLUs and poolings.
The perceptual distance is DCI-VTON's (Gou et al., 2023, arXiv:2308.06101), reference [7] of Diffuse to Choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import VGGConfig
from dtc_jax.models.inputs import normalize_imagenet
from dtc_jax.models.layers import Dense
from dtc_jax.models.remat import Remat, recomputed

PERCEPTUAL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class _Conv3x3(nn.Module):
    """3x3 convolution with He et al.'s (2015) initialisation: it keeps the scale through many ReLUs without norms."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum over 2x2 blocks; an odd last row or column is left out, as in PyTorch."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class VGG(nn.Module):
    """The convolutional part of a VGG network.

    `init` through `__call__` makes the convolutions that the perceptual features need; through `final_features`
    all of them (for VGG-19 two more: `features_32` and `features_34`).

    Attributes:
        config: Channels and convolutions of each block.
        dtype: Type of the arithmetic and of the features.
        remat: What the backward pass of the features computes again.
    """

    config: VGGConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        blocks = []
        index = 0
        for channels, count in zip(self.config.block_channels, self.config.convolutions_per_block, strict=True):
            block = []
            for _ in range(count):
                block.append(_Conv3x3(channels, dtype=self.dtype, name=f"features_{index}"))
                index += 2  # the convolution and its ReLU
            blocks.append(block)
            index += 1  # the pooling
        self.blocks = blocks

    def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b hi wi ci"]]:
        """Post-ReLU features of the second convolution of each block (the only one of a block that has just one).

        Args:
            images: RGB in [0, 1]; normalised here by ImageNet's mean and standard deviation.

        Returns:
            For VGG-19 relu1_2, relu2_2, relu3_2, relu4_2 and relu5_2; each half the height and width of the one before.
            Convolutions after the last of them are not run.
        """
        features = []
        x = self._normalise(images)
        for number, block in enumerate(self.blocks):
            # Of the last block nothing after the feature is needed.
            layers = block[:2] if number == len(self.blocks) - 1 else block
            if self.remat == "none" or self.is_initializing():
                feature, x = _run_block(layers, x, number > 0)
            else:
                feature, x = _recomputed_block(layers, x, number > 0)
            features.append(feature)
        return features

    def final_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """The last convolution's post-ReLU features, before the last pooling: what a classifier reads.

        Args:
            images: RGB in [0, 1].
        """
        return self.block_outputs(images)[-1]

    def block_outputs(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b hi wi ci"]]:
        """Post-ReLU features of the last convolution of each block, before its pooling: what LPIPS reads.

        Args:
            images: RGB in [0, 1].

        Returns:
            For VGG-16 relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
        """
        outputs = []
        x = self._normalise(images)
        for number, block in enumerate(self.blocks):
            if number > 0:
                x = max_pool_2x2(x)
            for convolution in block:
                x = nn.relu(convolution(x))
            outputs.append(x)
        return outputs

    def _normalise(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return normalize_imagenet(images).astype(self.dtype)


def _run_block(
    layers: Sequence[Callable[[Array], Array]], x: Float[Array, "b h w c"], pool: bool
) -> tuple[Float[Array, "b h2 w2 d"], Float[Array, "b h2 w2 d"]]:
    """The perceptual feature of a block, which is the second convolution's, and its output."""
    if pool:
        x = max_pool_2x2(x)
    outputs = []
    for convolution in layers:
        x = nn.relu(convolution(x))
        outputs.append(x)
    return outputs[min(1, len(outputs) - 1)], x


def _recomputed_block(
    layers: Sequence[nn.Module], x: Float[Array, "b h w c"], pool: bool
) -> tuple[Float[Array, "b h2 w2 d"], Float[Array, "b h2 w2 d"]]:
    """`_run_block` whose backward pass keeps its input alone."""
    alone = [layer.clone(parent=None) for layer in layers]

    def run(params: Sequence[Any], x: Array) -> tuple[Array, Array]:
        layers: list[Any] = [partial(layer.apply, {"params": own}) for layer, own in zip(alone, params, strict=True)]
        return _run_block(layers, x, pool)

    return recomputed(run)([layer.variables["params"] for layer in layers], x)


class VGGClassifier(nn.Module):
    """Linear heads on `VGG.final_features`, to train a VGG on labels; their parameters are a tree of their own.

    Each head reads the features' average over space (what is there) beside the flattened features (where it is).

    Attributes:
        heads: Number of classes of each named label.
        dtype: Type of the arithmetic; logits are float32.
    """

    heads: Mapping[str, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b classes"]]:
        """Logits of every head, from the output of `VGG.final_features`."""
        batch = features.shape[0]
        pooled = features.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)
        flat = jnp.concatenate([pooled, features.astype(self.dtype).reshape(batch, -1)], axis=-1)
        return {
            name: Dense(classes, dtype=self.dtype, name=name)(flat).astype(jnp.float32)
            for name, classes in self.heads.items()
        }


def perceptual_distance(
    features_a: Sequence[Float[Array, "b h w c"]],
    features_b: Sequence[Float[Array, "b h w c"]],
    weights: Sequence[float] = PERCEPTUAL_WEIGHTS,
) -> Float[Array, "b"]:
    """Weighted sum over levels of the mean absolute difference of features, per sample, in float32.

    Args:
        features_a: What `VGG.__call__` returns for one batch of images.
        features_b: The same for another.
        weights: One per level; the default is DCI-VTON's, 1/32 for relu1_2 up to 1 for relu5_2.

    Raises:
        ValueError: the numbers of levels and weights differ.
    """
    if not len(features_a) == len(features_b) == len(weights):
        raise ValueError(
            f"{len(features_a)} and {len(features_b)} levels of features with {len(weights)} weights: must be equal"
        )
    total = jnp.zeros(features_a[0].shape[0], jnp.float32)
    for a, b, weight in zip(features_a, features_b, weights, strict=True):
        difference = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))
        total = total + weight * difference.mean(axis=(1, 2, 3))
    return total
