"""The hint's path: adapter from pixels to latents, and a replica of the U-Net's encoder (paper 3.2, Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from dtc_jax.config import ModelConfig, UNetConfig
from dtc_jax.models.fusion import Feature
from dtc_jax.models.layers import Conv2d
from dtc_jax.models.remat import Remat
from dtc_jax.models.transformer import Context
from dtc_jax.models.unet import (
    Conditioning,
    MidBlock,
    block_contexts,
    down_blocks,
    part,
    run_encoder,
    time_embedding,
    timestep_embedding,
)


class HintAdapter(nn.Module):
    """Four 3x3 convolutions from the hint's pixels to the latents' size and channels, SiLU between them.

    The first log2(pixels per latent) have stride 2; the last starts at zero, as in ControlNet.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        channels = (*self.config.hint.adapter_channels, self.config.vae.latent_channels)
        halvings = int(math.log2(self.config.vae.factor))
        if halvings > len(channels):
            raise ValueError(
                f"hint.adapter_channels: {len(channels)} convolutions cannot halve the hint {halvings} times; add more"
            )
        last = len(channels) - 1
        self.convs = [
            Conv2d(features, stride=2 if index < halvings else 1, zero_init=index == last, dtype=self.dtype)
            for index, features in enumerate(channels)
        ]

    def __call__(self, hint: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """`hint` in [0, 1], at the image's size; the output is at the latents'."""
        x = self.convs[0](hint)
        for conv in self.convs[1:]:
            x = conv(nn.silu(x))
        return x


class HintEncoder(nn.Module):
    """A trainable replica of the U-Net's encoder and middle block, with the U-Net's parameter names.

    It never sees the noisy latents: with a fixed timestep its features are the same at every step of sampling.

    Attributes:
        config: Sizes of the U-Net that it replicates.
        dtype: Type of the arithmetic.
        remat: What the backward pass computes again.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        self.conv_in = Conv2d(self.config.block_out_channels[0], dtype=self.dtype)
        self.time_embedding = time_embedding(self.config, self.dtype)
        self.down_blocks = down_blocks(self.config, self.dtype, self.remat)
        self.mid_block = MidBlock(self.config, self.dtype, self.remat)

    def contexts(
        self, tokens: Float[Array, "cases l d"], null: Float[Array, "images n d"] | None
    ) -> tuple[tuple[Context, ...], ...]:
        """What all cross-attentions make of the tokens, for `__call__` in their place; see the U-Net's."""
        return block_contexts((*self.down_blocks, self.mid_block), tokens, null)

    def __call__(
        self, inputs: Float[Array, "b h w c"], timesteps: Num[Array, " b"], tokens: Conditioning
    ) -> tuple[Feature, ...]:
        """Features of the hint.

        Args:
            inputs: The adapter's output plus the masked scene's latents.
            timesteps: In [0, T), one per sample.
            tokens: Conditioning, as the main U-Net's.

        Returns:
            All skips and the middle's output, in the order of `dtc_jax.models.unet.feature_channels`.
        """
        temb = self.time_embedding(timestep_embedding(timesteps, self.config.block_out_channels[0]))
        x, skips = run_encoder(self.conv_in, self.down_blocks, inputs, temb, tokens)
        return (*skips, self.mid_block(x, temb, part(tokens, len(self.down_blocks))))


def replicate_encoder(unet: Mapping[str, Any], latent_channels: int) -> dict[str, Any]:
    """The hint encoder's first parameters: a copy of the U-Net's encoder and middle.

    `conv_in` keeps the part of the kernel that reads the noisy latents, which come first in the U-Net's input.
    The arrays are copies: buffers shared by two parameters could not be donated.

    Args:
        unet: The U-Net's parameters.
        latent_channels: Channels of the latents.
    """
    replica = {
        name: tree
        for name, tree in unet.items()
        if name in ("time_embedding", "mid_block") or name.startswith("down_blocks_")
    }
    conv_in = unet["conv_in"]
    replica["conv_in"] = {**conv_in, "kernel": conv_in["kernel"][:, :, :latent_channels, :]}
    return jax.tree.map(lambda array: array.copy(), replica)
