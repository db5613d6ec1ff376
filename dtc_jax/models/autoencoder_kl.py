"""The variational autoencoder of latent diffusion (Rombach et al., 2022, arXiv:2112.10752), diffusers' `AutoencoderKL`.

Module names follow diffusers (`encoder.down_blocks.0.resnets.0.conv1` is `encoder/down_blocks_0/resnets_0/conv1`).
Latents are unscaled inside the module; `scale` and `unscale` are the only places where `scaling_factor` is used.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from dtc_jax.config import AutoencoderConfig, AutoencoderKLConfig
from dtc_jax.models.attention import attention
from dtc_jax.models.layers import Conv2d, Dense, GroupNorm
from dtc_jax.models.remat import Remat, apply_block
from dtc_jax.models.resnet import Downsample, ResnetBlock, Upsample

_EPSILON = 1e-6
_LOGVAR_RANGE = (-30.0, 20.0)


class _Attention(nn.Module):
    """Single-head self-attention over all places, with a residual connection."""

    channels: int
    num_groups: int
    dtype: DTypeLike

    def setup(self) -> None:
        self.group_norm = GroupNorm(self.num_groups, _EPSILON, dtype=self.dtype)
        self.to_q = Dense(self.channels, dtype=self.dtype)
        self.to_k = Dense(self.channels, dtype=self.dtype)
        self.to_v = Dense(self.channels, dtype=self.dtype)
        self.to_out = [Dense(self.channels, dtype=self.dtype)]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch, height * width, 1, channels)
        mixed = attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](mixed).reshape(x.shape)


class _MidBlock(nn.Module):
    """ResNet block, attention (or none), ResNet block, at the lowest resolution."""

    config: AutoencoderKLConfig
    dtype: DTypeLike
    remat: Remat = "none"

    def setup(self) -> None:
        channels, groups = self.config.block_out_channels[-1], self.config.norm_num_groups
        self.resnets = [ResnetBlock(channels, groups, self.dtype, _EPSILON) for _ in range(2)]
        self.attentions = [_Attention(channels, groups, self.dtype)] if self.config.mid_block_add_attention else []

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = apply_block(layer, self.remat, x)
        return x


class _Level(nn.Module):
    """ResNet blocks of one resolution, then a change of resolution where there is one."""

    channels: int
    num_layers: int
    num_groups: int
    downsample: bool
    upsample: bool
    dtype: DTypeLike
    remat: Remat = "none"

    def setup(self) -> None:
        self.resnets = [
            ResnetBlock(self.channels, self.num_groups, self.dtype, _EPSILON) for _ in range(self.num_layers)
        ]
        # Zeros at the bottom and the right only, as the published weights want.
        self.downsamplers = [Downsample(self.channels, self.dtype, padding=((0, 1), (0, 1)))] if self.downsample else []
        self.upsamplers = [Upsample(self.channels, self.dtype)] if self.upsample else []

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for block in self.resnets:
            x = apply_block(block, self.remat, x)
        for layer in (*self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class _Encoder(nn.Module):
    """Images to the means and log-variances of the latents, before `quant_conv`."""

    config: AutoencoderKLConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        self.conv_in = Conv2d(config.block_out_channels[0], dtype=self.dtype)
        last = len(config.block_out_channels) - 1
        self.down_blocks = [
            _Level(channels, config.layers_per_block, config.norm_num_groups, level < last, False, self.dtype)
            for level, channels in enumerate(config.block_out_channels)
        ]
        self.mid_block = _MidBlock(config, self.dtype)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, _EPSILON, dtype=self.dtype)
        self.conv_out = Conv2d(2 * config.latent_channels, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))


class _Decoder(nn.Module):
    """Latents, after `post_quant_conv`, to images."""

    config: AutoencoderKLConfig
    dtype: DTypeLike
    remat: Remat = "none"

    def setup(self) -> None:
        config = self.config
        self.conv_in = Conv2d(config.block_out_channels[-1], dtype=self.dtype)
        self.mid_block = _MidBlock(config, self.dtype, self.remat)
        last = len(config.block_out_channels) - 1
        self.up_blocks = [
            _Level(
                channels,
                config.layers_per_block + 1,
                config.norm_num_groups,
                False,
                level < last,
                self.dtype,
                self.remat,
            )
            for level, channels in enumerate(reversed(config.block_out_channels))
        ]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, _EPSILON, dtype=self.dtype)
        self.conv_out = Conv2d(config.in_channels, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = self.conv_in(x)
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))


def check_divisible(images: Float[Array, "b h w c"], factor: int) -> None:
    """Raise a ValueError unless height and width are divisible by an autoencoder's factor."""
    height, width = images.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(f"the autoencoder needs height and width divisible by {factor}, not {height}x{width}")


class AutoencoderKL(nn.Module):
    """Variational autoencoder between images and latents.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic; results are float32 in any case.
        remat: What the decoder's backward pass computes again.
    """

    config: AutoencoderKLConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        latent_channels = self.config.latent_channels
        self.encoder = _Encoder(self.config, self.dtype)
        self.quant_conv = Conv2d(2 * latent_channels, kernel_size=1, padding=0, dtype=self.dtype)
        self.post_quant_conv = Conv2d(latent_channels, kernel_size=1, padding=0, dtype=self.dtype)
        self.decoder = _Decoder(self.config, self.dtype, self.remat)

    def encode(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h2 w2 latents"], Float[Array, "b h2 w2 latents"]]:
        """Mean (the posterior's mode) and log-variance of unscaled latents, both float32.

        Args:
            images: In [-1, 1]; height and width divisible by `config.factor`.

        Raises:
            ValueError: height or width is not divisible.
        """
        check_divisible(images, self.config.factor)
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *_LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "b h w latents"]) -> Float[Array, "b h2 w2 c"]:
        """Images, float32, nominally in [-1, 1] but not clipped, from unscaled latents."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Reconstruction from the posterior's mode. `init` through this method makes every parameter."""
        mean, _ = self.encode(images)
        return self.decode(mean)


def sample_posterior(
    keys: Key[Array, " b"], mean: Float[Array, "b h w c"], logvar: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """A sample of the unscaled latents: mean + exp(logvar / 2) * standard normal noise.

    Args:
        keys: One per sample, so that a sample's noise does not depend on the batch that it is in.
        mean: From `AutoencoderKL.encode`.
        logvar: From `AutoencoderKL.encode`.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], jnp.float32))(keys)
    return mean + jnp.exp(0.5 * logvar) * noise


def scale(latents: Float[Array, "b h w c"], config: AutoencoderConfig) -> Float[Array, "b h w c"]:
    """The autoencoder's latents as the diffusion model sees them, of standard deviation about one."""
    return latents * config.scaling_factor


def unscale(latents: Float[Array, "b h w c"], config: AutoencoderConfig) -> Float[Array, "b h w c"]:
    """Inverse of `scale`: what `AutoencoderKL.decode` takes."""
    return latents / config.scaling_factor
