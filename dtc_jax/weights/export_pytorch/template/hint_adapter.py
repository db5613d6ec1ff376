"""The hint adapter: four convolutions from the hint's pixels to the latents' size and channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class HintAdapter(ModelMixin, ConfigMixin):
    """3x3 convolutions, SiLU between them; the first `halvings` have stride 2."""

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (16, 32, 96, 4), halvings: int = 3):
        super().__init__()
        widths = (3, *channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if index < halvings else 1, padding=1)
            for index, (before, after) in enumerate(zip(widths, channels, strict=False))
        )

    def forward(self, hint: torch.Tensor) -> torch.Tensor:
        """`hint` [b, 3, h, w] in [0, 1]."""
        x = self.convs[0](hint)
        for conv in self.convs[1:]:
            x = conv(F.silu(x))
        return x
