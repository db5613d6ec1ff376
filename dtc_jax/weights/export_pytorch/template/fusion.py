"""How hint features enter the U-Net: FiLM, (1 + gamma) * x + beta, on every skip and on the middle."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class FiLM(nn.Module):
    """gamma and beta of one place from its hint feature."""

    def __init__(self, channels: int, pooled: bool):
        super().__init__()
        self.pooled = pooled
        self.gamma = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.pooled:
            feature = feature.float().mean((2, 3), keepdim=True).to(feature.dtype)
        return self.gamma(feature), self.beta(feature)


class Fusion(ModelMixin, ConfigMixin):
    """One FiLM layer per skip, and one for the middle.

    `channels` are those of every skip, and the middle's last; `pooled`: one gamma and beta per channel, not per pixel.
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...], pooled: bool = False):
        super().__init__()
        self.skips = nn.ModuleList(FiLM(features, pooled) for features in channels[:-1])
        self.middle = FiLM(channels[-1], pooled)

    def forward(self, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(gamma, beta) of every skip and the middle, from the hint encoder's features."""
        layers = [*self.skips, self.middle]
        return [layer(feature) for layer, feature in zip(layers, features, strict=True)]
