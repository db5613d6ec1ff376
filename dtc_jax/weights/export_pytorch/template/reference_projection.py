"""One dense layer from the image encoder's tokens to the U-Net's cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class ReferenceProjection(ModelMixin, ConfigMixin):
    """tokens @ weight.T + bias."""

    @register_to_config
    def __init__(self, in_features: int = 1536, out_features: int = 768):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[b, l, in_features] to [b, l, out_features]."""
        return F.linear(tokens, self.weight, self.bias)
