"""The learned vector that stands for "no reference" in classifier-free guidance."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class NullTokens(ModelMixin, ConfigMixin):
    """One vector, the same at every position."""

    @register_to_config
    def __init__(self, features: int = 768):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(1, 1, features))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The vector in the shape of `tokens` [b, l, features]."""
        return self.embedding.to(tokens.dtype).expand_as(tokens)
