"""How hint features enter the U-Net, on every skip and on the middle: FiLM, (1 + gamma) * x + beta, or addition."""

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


class Addition(nn.Module):
    """What is added at one place: FiLM with a gamma of zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.zero_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return feature.new_zeros(feature.shape[0], 1, 1, 1), self.zero_conv(feature)


class Fusion(ModelMixin, ConfigMixin):
    """One layer per skip, and one for the middle.

    `channels` are those of every skip, and the middle's last; `pooled`: one gamma and beta per channel, not per pixel;
    `kind`: "film" or "addition".
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...], pooled: bool = False, kind: str = "film"):
        super().__init__()
        layers = [Addition(features) if kind == "addition" else FiLM(features, pooled) for features in channels]
        self.skips, self.middle = nn.ModuleList(layers[:-1]), layers[-1]

    def forward(self, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(gamma, beta) of every skip and the middle, from the hint encoder's features."""
        layers = [*self.skips, self.middle]
        return [layer(feature) for layer, feature in zip(layers, features, strict=True)]
