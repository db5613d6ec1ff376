"""Sizes of the autoencoders between pixels and latents; import them from `dtc_jax.config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT, require


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """Sizes of the variational autoencoder, named after diffusers' `AutoencoderKL`; defaults are SD1.5's."""

    __pydantic_config__ = STRICT

    kind: Literal["kl"] = "kl"
    """Tells the kinds of autoencoder apart in config.json."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 4
    """Channels of the latents."""
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each level; each level but the last halves the resolution."""
    layers_per_block: int = 2
    """ResNet blocks per level of the encoder (the decoder has one more)."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm."""
    mid_block_add_attention: bool = True
    """One single-head self-attention in the middle of encoder and decoder."""
    scaling_factor: float = 0.18215
    """Latents are multiplied by this, so that their standard deviation is about one."""

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            require(
                channels % self.norm_num_groups == 0,
                f"vae.block_out_channels: {channels} is not divisible by vae.norm_num_groups = {self.norm_num_groups}",
            )

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class PatchAutoencoderConfig:
    """Sizes of the tiny model's autoencoder: a linear map of patches, corrected by convolutions at the latents' size.

    At a few hundred thousand parameters it keeps more than an `AutoencoderKL` of the same cost (docs/architecture.md).
    """

    __pydantic_config__ = STRICT

    kind: Literal["patch"] = "patch"
    """Tells the kinds of autoencoder apart in config.json."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 8
    """Channels of the latents."""
    patch_size: int = 4
    """Side of a patch in pixels: one latent place."""
    hidden_channels: int = 64
    """Width of the convolutions."""
    num_blocks: int = 2
    """Residual blocks of two convolutions, in the encoder and in the decoder."""
    scaling_factor: float = 1.0
    """Latents are multiplied by this, so that their standard deviation is about one."""

    def __post_init__(self) -> None:
        size = self.patch_size
        require(size > 0 and size & (size - 1) == 0, f"vae.patch_size = {size} must be a power of 2")

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return self.patch_size


@dataclass(frozen=True, kw_only=True)
class AutoencoderTinyConfig:
    """Sizes of TAESD, named after diffusers' `AutoencoderTiny`; defaults are those for SD1.x latents."""

    __pydantic_config__ = STRICT

    kind: Literal["tiny"] = "tiny"
    """Tells the kinds of autoencoder apart in config.json."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 4
    """Channels of the latents."""
    channels: int = 64
    """Channels of every convolution in between."""
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    """Residual blocks of each level of the encoder; each level but the first halves the resolution."""
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Residual blocks of each level of the decoder; each level but the last doubles the resolution."""
    scaling_factor: float = 1.0
    """One: it is trained on latents that are scaled already."""

    def __post_init__(self) -> None:
        require(
            len(self.num_encoder_blocks) == len(self.num_decoder_blocks) > 0,
            "vae.num_encoder_blocks and vae.num_decoder_blocks need the same length",
        )

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.num_encoder_blocks) - 1)


AutoencoderConfig = AutoencoderKLConfig | PatchAutoencoderConfig | AutoencoderTinyConfig
"""Any autoencoder; they share encode, decode and scaling."""
