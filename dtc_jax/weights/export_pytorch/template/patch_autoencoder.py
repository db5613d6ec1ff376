"""A small autoencoder: a linear map of patches, corrected by convolutions at the latents' size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Coder(nn.Module):
    """linear(x) + correction(blocks(conv_in(x)))."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, num_blocks: int):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.conv_in = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(hidden_channels) for _ in range(num_blocks))
        self.correction = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_in(x)
        for block in self.blocks:
            y = block(y)
        return self.linear(x.movedim(1, -1)).movedim(-1, 1) + self.correction(F.silu(y))


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Images [b, 3, h, w] in [-1, 1] to latents of 1 / patch_size the size, and back."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 8,
        patch_size: int = 4,
        hidden_channels: int = 64,
        num_blocks: int = 2,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        patch_channels = patch_size**2 * in_channels
        self.encoder = Coder(patch_channels, latent_channels, hidden_channels, num_blocks)
        self.decoder = Coder(latent_channels, patch_channels, hidden_channels, num_blocks)
        self.logvar = nn.Parameter(torch.zeros(latent_channels))  # of the posterior, in training

    def encode(self, images: torch.Tensor) -> AutoencoderTinyOutput:
        """The posterior's mean."""
        b, c, h, w = images.shape
        p = self.config.patch_size
        patches = images.reshape(b, c, h // p, p, w // p, p).permute(0, 3, 5, 1, 2, 4)
        return AutoencoderTinyOutput(latents=self.encoder(patches.reshape(b, p * p * c, h // p, w // p)))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        """Images, nominally in [-1, 1]."""
        b, _, h, w = latents.shape
        p, c = self.config.patch_size, self.config.in_channels
        pixels = self.decoder(latents).reshape(b, p, p, c, h, w).permute(0, 3, 4, 1, 5, 2)
        return DecoderOutput(sample=pixels.reshape(b, c, h * p, w * p))

    def forward(self, images: torch.Tensor) -> DecoderOutput:
        """Reconstruction."""
        return self.decode(self.encode(images).latents)
