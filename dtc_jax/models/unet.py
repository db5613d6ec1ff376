"""The denoising U-Net of Stable Diffusion 1.5 (Rombach et al., 2022), named after diffusers' `UNet2DConditionModel`.

The encoder is a free function over its submodules, because the hint encoder is a replica of it under the same parameter
names (`dtc_jax.models.hint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from dtc_jax.config import UNetConfig
from dtc_jax.models.fusion import Feature, Fuse, Modulation, modulate
from dtc_jax.models.layers import Conv2d, Dense, GroupNorm, repeat_rows
from dtc_jax.models.remat import Remat, apply_block
from dtc_jax.models.resnet import Downsample, ResnetBlock, Upsample
from dtc_jax.models.transformer import Context, SpatialTransformer

Tokens = Float[Array, "b l d"] | Sequence[Context]
"""The conditioning of a block's transformers: tokens, one set for each row of the batch; or one `Context` for each
transformer, through which one row for an image may become two (see `dtc_jax.models.transformer`)."""
Conditioning = Float[Array, "b l d"] | Sequence[Sequence[Context]]
"""The same for several blocks in a row."""


def timestep_embedding(timesteps: Num[Array, " b"], features: int) -> Float[Array, "b c"]:
    """Sinusoids of the timestep in float32: cosines, then sines, wavelengths 2 pi to 2 pi * 10000.

    diffusers' `Timesteps(features, flip_sin_to_cos=True, downscale_freq_shift=0)`.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def feature_channels(config: UNetConfig) -> tuple[int, ...]:
    """Channels of every output of encoder and middle: all skips in the order they are made, the middle last."""
    channels = [config.block_out_channels[0]]
    last = len(config.block_out_channels) - 1
    for level, features in enumerate(config.block_out_channels):
        channels += [features] * (config.layers_per_block + (level < last))
    return (*channels, config.block_out_channels[-1])


class TimeEmbedding(nn.Module):
    """Two dense layers on the sinusoids of the timestep: linear_1, SiLU, linear_2."""

    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.linear_1 = Dense(self.features, dtype=self.dtype)
        self.linear_2 = Dense(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        return self.linear_2(nn.silu(self.linear_1(x)))


class DownBlock(nn.Module):
    """One level of the encoder: ResNet blocks, each followed by a transformer where the level has attention.

    Attributes:
        config: Sizes of the U-Net.
        level: Index of the level; the last one does not halve the resolution.
        dtype: Type of the arithmetic.
        remat: What the backward pass computes again.
    """

    config: UNetConfig
    level: int
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        config, features = self.config, self.config.block_out_channels[self.level]
        layers = range(config.layers_per_block)
        self.resnets = [ResnetBlock(features, config.norm_num_groups, self.dtype) for _ in layers]
        if config.attention_levels[self.level]:
            self.attentions = [spatial_transformer(config, features, self.dtype) for _ in layers]
        if self.level < len(config.block_out_channels) - 1:
            self.downsamplers = [Downsample(features, self.dtype)]

    def __call__(self, x: Feature, temb: Float[Array, "b2 t"], tokens: Tokens) -> list[Feature]:
        """Return the output of every layer and of the downsampling; the last is the level's own output."""
        outputs: list[Feature] = []
        for index, resnet in enumerate(self.resnets):
            x = apply_block(resnet, self.remat, x, temb)
            if self.config.attention_levels[self.level]:
                x = apply_block(self.attentions[index], self.remat, x, part(tokens, index))
            outputs.append(x)
        if self.level < len(self.config.block_out_channels) - 1:
            outputs.append(self.downsamplers[0](x))
        return outputs


class MidBlock(nn.Module):
    """The middle: ResNet block, transformer, ResNet block."""

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        features = self.config.block_out_channels[-1]
        self.resnets = [ResnetBlock(features, self.config.norm_num_groups, self.dtype) for _ in range(2)]
        self.attentions = [spatial_transformer(self.config, features, self.dtype)]

    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b2 t"], tokens: Tokens
    ) -> Float[Array, "b3 h w c"]:
        x = apply_block(self.resnets[0], self.remat, x, temb)
        x = apply_block(self.attentions[0], self.remat, x, part(tokens, 0))
        return apply_block(self.resnets[1], self.remat, x, temb)


class UpBlock(nn.Module):
    """One level of the decoder: as `DownBlock` with one layer more, each joined to a skip, and upsampling at the end.

    Attributes:
        config: Sizes of the U-Net.
        level: Index of the level in the encoder's order; level 0 does not upsample.
        dtype: Type of the arithmetic.
        remat: What the backward pass computes again.
    """

    config: UNetConfig
    level: int
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        config, features = self.config, self.config.block_out_channels[self.level]
        layers = range(config.layers_per_block + 1)
        self.resnets = [ResnetBlock(features, config.norm_num_groups, self.dtype) for _ in layers]
        if config.attention_levels[self.level]:
            self.attentions = [spatial_transformer(config, features, self.dtype) for _ in layers]
        if self.level > 0:
            self.upsamplers = [Upsample(features, self.dtype)]

    def __call__(self, x: Feature, skips: Sequence[Feature], temb: Float[Array, "b2 t"], tokens: Tokens) -> Feature:
        """`skips` are this level's, in the encoder's order; they are consumed from the last to the first."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            joined = jnp.concatenate([x, repeat_rows(skip, x.shape[0])], axis=-1)
            x = apply_block(resnet, self.remat, joined, temb)
            if self.config.attention_levels[self.level]:
                x = apply_block(self.attentions[index], self.remat, x, part(tokens, index))
        if self.level > 0:
            x = self.upsamplers[0](x)
        return x


def part(tokens: Any, index: int) -> Any:
    """The conditioning of one block or transformer, from that of several: tokens are the same for all."""
    return tokens[index] if isinstance(tokens, Sequence) else tokens


def block_contexts(
    blocks: Sequence[nn.Module], tokens: Float[Array, "cases l d"], null: Float[Array, "images n d"] | None
) -> tuple[tuple[Context, ...], ...]:
    """A `Context` for every transformer of every block."""
    return tuple(
        tuple(attention.context(tokens, null) for attention in getattr(block, "attentions", ())) for block in blocks
    )


def spatial_transformer(config: UNetConfig, features: int, dtype: DTypeLike) -> SpatialTransformer:
    """The transformer of a level with this many channels."""
    return SpatialTransformer(features, config.num_attention_heads, config.norm_num_groups, dtype)


def time_embedding(config: UNetConfig, dtype: DTypeLike) -> TimeEmbedding:
    """The time embedding, four times as wide as the first level."""
    return TimeEmbedding(4 * config.block_out_channels[0], dtype)


def down_blocks(config: UNetConfig, dtype: DTypeLike, remat: Remat) -> list[DownBlock]:
    """All levels of the encoder."""
    return [DownBlock(config, level, dtype, remat) for level in range(len(config.block_out_channels))]


def run_encoder(
    conv_in: Conv2d,
    blocks: Sequence[DownBlock],
    x: Float[Array, "b h w c"],
    temb: Float[Array, "b2 t"],
    tokens: Conditioning,
) -> tuple[Feature, tuple[Feature, ...]]:
    """Run the encoder of a U-Net (or of its replica).

    Returns:
        The encoder's output and every skip in the order they are made; see `feature_channels`.

    Raises:
        ValueError: height or width cannot be halved often enough.
    """
    step = 2 ** (len(blocks) - 1)
    if x.shape[1] % step or x.shape[2] % step:
        raise ValueError(f"latents are {x.shape[1]}x{x.shape[2]}; height and width must be divisible by {step}")
    x = conv_in(x)
    skips = [x]
    for index, block in enumerate(blocks):
        outputs = block(x, temb, part(tokens, index))
        skips += outputs
        x = outputs[-1]
    return x, tuple(skips)


class UNet2DConditionModel(nn.Module):
    """U-Net that predicts noise (or v, or x0) from noisy latents, timestep and tokens.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic; parameters are float32, the output is float32.
        remat: What the backward pass computes again.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        config = self.config
        self.conv_in = Conv2d(config.block_out_channels[0], dtype=self.dtype)
        self.time_embedding = time_embedding(config, self.dtype)
        self.down_blocks = down_blocks(config, self.dtype, self.remat)
        self.mid_block = MidBlock(config, self.dtype, self.remat)
        levels = len(config.block_out_channels)
        self.up_blocks = [UpBlock(config, level, self.dtype, self.remat) for level in reversed(range(levels))]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, 1e-5, self.dtype)
        self.conv_out = Conv2d(config.out_channels, dtype=self.dtype)

    def embed_time(self, timesteps: Num[Array, " b"]) -> Float[Array, "b t"]:
        """Time embedding of timesteps in [0, T); need not be whole numbers."""
        return self.time_embedding(timestep_embedding(timesteps, self.config.block_out_channels[0]))

    def contexts(
        self, tokens: Float[Array, "cases l d"], null: Float[Array, "images n d"] | None
    ) -> tuple[tuple[Context, ...], ...]:
        """What all cross-attentions make of the tokens, for `__call__` in their place: encoder, middle, decoder.

        Args:
            tokens: Of each case.
            null: The null tokens (one vector stands for any number), for each image, if unconditional rows are wanted.
        """
        return block_contexts((*self.down_blocks, self.mid_block, *self.up_blocks), tokens, null)

    def encode(
        self, inputs: Float[Array, "b h w c"], temb: Float[Array, "b2 t"], tokens: Conditioning
    ) -> tuple[Feature, tuple[Feature, ...]]:
        """Encoder's output and its skips (12 for SD1.5); see `run_encoder`."""
        return run_encoder(self.conv_in, self.down_blocks, inputs, temb, tokens)

    def middle(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b2 t"], tokens: Conditioning
    ) -> Float[Array, "b3 h w c"]:
        """The middle block."""
        return self.mid_block(x, temb, part(tokens, len(self.down_blocks)))

    def decode(
        self, x: Feature, skips: Sequence[Feature], temb: Float[Array, "b2 t"], tokens: Conditioning
    ) -> Float[Array, "b _ _ out"]:
        """Decoder: from the middle's output and the skips to the prediction, in float32."""
        layers = self.config.layers_per_block + 1
        remaining = tuple(skips)
        for index, block in enumerate(self.up_blocks, len(self.down_blocks) + 1):
            x = block(x, remaining[-layers:], temb, part(tokens, index))
            remaining = remaining[:-layers]
        return self.conv_out(nn.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def __call__(
        self,
        inputs: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        tokens: Conditioning,
        modulations: Sequence[Modulation | Fuse] | None = None,
        temb: Float[Array, "b2 t"] | None = None,
    ) -> Float[Array, "b3 h w out"]:
        """Predict.

        Args:
            inputs: Noisy latents, and whatever else the configuration concatenates to them.
            timesteps: In [0, T), one per sample.
            tokens: Conditioning for the cross-attention, or what `contexts` made of it.
            modulations: For every skip and the middle: what `dtc_jax.models.fusion.modulate` takes, or a function of
                the feature. None for a plain U-Net.
            temb: What `embed_time` returned, in place of the timesteps; of fewer rows each serves several.

        Returns:
            The prediction, float32; with unconditional rows in `contexts`, of two rows for each image.

        Raises:
            ValueError: height or width cannot be halved often enough, or there are too many or few modulations.
        """
        temb = self.embed_time(timesteps) if temb is None else temb
        x, skips = self.encode(inputs, temb, tokens)
        x = self.middle(x, temb, tokens)
        if modulations is not None:
            *skips_modulated, x = (
                m(f) if callable(m) else modulate(f, m) for f, m in zip((*skips, x), modulations, strict=True)
            )
            skips = tuple(skips_modulated)
        return self.decode(x, skips, temb, tokens)
