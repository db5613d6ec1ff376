"""TAESD, the tiny autoencoder for Stable Diffusion's latents (madebyollin/taesd), diffusers' `AutoencoderTiny`.

Module names follow diffusers (`decoder.layers.2.conv.0` is `decoder/layers_2/conv_0`), whose indices count activations
and upsamplings too. Its latents are those of Stable Diffusion, scaled already: `config.scaling_factor` is one.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import AutoencoderTinyConfig
from dtc_jax.models.autoencoder_kl import check_divisible
from dtc_jax.models.layers import Conv2d
from dtc_jax.models.resnet import nearest_upsample

_LATENT_LIMIT = 3.0
# There is no posterior; the smallest log-variance of AutoencoderKL stands for a variance of nothing.
_LOGVAR = -30.0


class _Block(nn.Module):
    """Three 3x3 convolutions with ReLUs between and after; residual."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = nn.relu(Conv2d(self.channels, dtype=self.dtype, name="conv_0")(x))
        y = nn.relu(Conv2d(self.channels, dtype=self.dtype, name="conv_2")(y))
        return nn.relu(Conv2d(self.channels, dtype=self.dtype, name="conv_4")(y) + x)


class _Encoder(nn.Module):
    """Images in [0, 1] to latents."""

    config: AutoencoderTinyConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        config, index = self.config, 0
        for level, num_blocks in enumerate(config.num_encoder_blocks):
            halve = level > 0
            conv = Conv2d(
                config.channels,
                stride=2 if halve else 1,
                use_bias=not halve,
                dtype=self.dtype,
                name=f"layers_{index}",
            )
            x = conv(x)
            for block in range(num_blocks):
                x = _Block(config.channels, self.dtype, name=f"layers_{index + 1 + block}")(x)
            index += 1 + num_blocks
        return Conv2d(config.latent_channels, dtype=self.dtype, name=f"layers_{index}")(x)


class _Decoder(nn.Module):
    """Latents to images in [0, 1], nominally."""

    config: AutoencoderTinyConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        config = self.config
        x = nn.relu(Conv2d(config.channels, dtype=self.dtype, name="layers_0")(x))
        index = 2  # the convolution and its ReLU
        last = len(config.num_decoder_blocks) - 1
        for level, num_blocks in enumerate(config.num_decoder_blocks):
            for block in range(num_blocks):
                x = _Block(config.channels, self.dtype, name=f"layers_{index + block}")(x)
            index += num_blocks
            if level < last:
                x = nearest_upsample(x)
                x = Conv2d(config.channels, use_bias=False, dtype=self.dtype, name=f"layers_{index + 1}")(x)
                index += 2  # the upsampling and its convolution
        return Conv2d(config.in_channels, dtype=self.dtype, name=f"layers_{index}")(x)


class AutoencoderTiny(nn.Module):
    """Distilled autoencoder between images and latents; the same methods as `AutoencoderKL`.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic; results are float32 in any case.
    """

    config: AutoencoderTinyConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder = _Encoder(self.config, self.dtype)
        self.decoder = _Decoder(self.config, self.dtype)

    def encode(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h2 w2 latents"], Float[Array, "b h2 w2 latents"]]:
        """Latents and a log-variance of -30 everywhere (there is no posterior to sample), both float32.

        Args:
            images: In [-1, 1]; height and width divisible by `config.factor`.

        Raises:
            ValueError: height or width is not divisible.
        """
        check_divisible(images, self.config.factor)
        latents = self.encoder((images.astype(jnp.float32) + 1) / 2).astype(jnp.float32)
        return latents, jnp.full_like(latents, _LOGVAR)

    def decode(self, latents: Float[Array, "b h w latents"]) -> Float[Array, "b h2 w2 c"]:
        """Images, float32, nominally in [-1, 1] but not clipped, from latents, which are squashed to (-3, 3) first."""
        squashed = jnp.tanh(latents.astype(jnp.float32) / _LATENT_LIMIT) * _LATENT_LIMIT
        return self.decoder(squashed).astype(jnp.float32) * 2 - 1

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Reconstruction. `init` through this method makes every parameter.

        (diffusers' `forward` rounds the latents to 8 bits in between; this does not.)
        """
        latents, _ = self.encode(images)
        return self.decode(latents)
