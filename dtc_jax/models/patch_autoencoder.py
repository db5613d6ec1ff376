"""The tiny model's autoencoder: a linear map of patches plus convolutions at the latents' size.

It stands in for `AutoencoderKL` where there are only minutes to train one: the linear maps start as the principal
components of patches (`principal_components`), which is the best that any linear autoencoder can do, and the
convolutions, which see a patch's neighbours, start at zero. It has the same `encode`, `decode` and scaling.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import PatchAutoencoderConfig
from dtc_jax.models.layers import Conv2d, Dense

_LOGVAR_START = -6.0


def space_to_depth(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b h2 w2 d"]:
    """Each patch of patch_size x patch_size pixels as one place of patch_size^2 * c channels (row, column, channel)."""
    b, h, w, c = images.shape
    if h % patch_size or w % patch_size:
        raise ValueError(f"images are {h}x{w}; height and width must be divisible by {patch_size}")
    patches = images.reshape(b, h // patch_size, patch_size, w // patch_size, patch_size, c)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch_size, w // patch_size, -1)


def depth_to_space(patches: Float[Array, "b h w d"], patch_size: int) -> Float[Array, "b h2 w2 c"]:
    """Inverse of `space_to_depth`."""
    b, h, w, d = patches.shape
    pixels = patches.reshape(b, h, w, patch_size, patch_size, d // patch_size**2)
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch_size, w * patch_size, -1)


class _ResidualBlock(nn.Module):
    features: int
    dtype: DTypeLike

    def setup(self) -> None:
        self.conv1 = Conv2d(self.features, dtype=self.dtype)
        self.conv2 = Conv2d(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv2(nn.silu(self.conv1(nn.silu(x))))


class _Coder(nn.Module):
    """linear(x) + correction(blocks(conv_in(x))); `correction` starts at zero."""

    config: PatchAutoencoderConfig
    out_channels: int
    dtype: DTypeLike

    def setup(self) -> None:
        width = self.config.hidden_channels
        self.linear = Dense(self.out_channels, dtype=self.dtype)
        self.conv_in = Conv2d(width, dtype=self.dtype)
        self.blocks = [_ResidualBlock(width, self.dtype) for _ in range(self.config.num_blocks)]
        self.correction = Conv2d(self.out_channels, zero_init=True, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        y = self.conv_in(x)
        for block in self.blocks:
            y = block(y)
        return self.linear(x).astype(jnp.float32) + self.correction(nn.silu(y)).astype(jnp.float32)


class PatchAutoencoder(nn.Module):
    """Images in [-1, 1] to latents of 1 / patch_size the size, and back.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic; moments and images are float32.
    """

    config: PatchAutoencoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.encoder = _Coder(config, config.latent_channels, self.dtype)
        self.decoder = _Coder(config, config.patch_size**2 * config.in_channels, self.dtype)
        self.logvar = self.param("logvar", nn.initializers.zeros, (config.latent_channels,), jnp.float32)

    def encode(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
        """Mean and log-variance of the unscaled latents; the variance is one number per channel."""
        mean = self.encoder(space_to_depth(images, self.config.patch_size))
        return mean, jnp.broadcast_to(_LOGVAR_START + self.logvar, mean.shape)

    def decode(self, latents: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
        """Images, nominally in [-1, 1], from unscaled latents."""
        return depth_to_space(self.decoder(latents), self.config.patch_size)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Reconstruction from the mean."""
        return self.decode(self.encode(images)[0])


def principal_components(
    images: Float[np.ndarray, "n h w 3"], config: PatchAutoencoderConfig
) -> dict[str, dict[str, dict[str, Float[np.ndarray, "..."]]]]:
    """The linear maps of encoder and decoder that a principal component analysis of patches gives.

    The components keep their own proportions, scaled to a mean square of one: a latent weighs in the diffusion loss
    what it weighs in the picture, and coarse ones rise from the noise before fine ones. Whitened, the faint components,
    which hardly anything predicts, would weigh as much as the rest together.

    Args:
        images: In [-1, 1]; a few hundred.
        config: Sizes.

    Returns:
        {"encoder": {"linear": {kernel, bias}}, "decoder": {"linear": {kernel, bias}}}, float32.
    """
    patches = np.asarray(space_to_depth(jnp.asarray(images), config.patch_size), np.float64)
    patches = patches.reshape(-1, patches.shape[-1])
    mean = patches.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    order = np.argsort(variances)[::-1][: config.latent_channels]
    variances, vectors = variances[order], vectors[:, order]
    deviation = np.sqrt(variances)
    deviation /= np.sqrt(np.mean(deviation**2))
    encode = vectors * (deviation / np.sqrt(variances))
    decode = (vectors * (np.sqrt(variances) / deviation)).T
    return {
        "encoder": {"linear": {"kernel": encode.astype(np.float32), "bias": (-mean @ encode).astype(np.float32)}},
        "decoder": {"linear": {"kernel": decode.astype(np.float32), "bias": mean.astype(np.float32)}},
    }
