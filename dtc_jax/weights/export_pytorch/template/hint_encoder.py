"""The hint encoder: a replica of Stable Diffusion's U-Net encoder and middle, which reads the hint."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, DownBlock2D, UNetMidBlock2DCrossAttn
from torch import nn


class HintEncoder(ModelMixin, ConfigMixin):
    """Features of the hint for every skip of the U-Net and for its middle; parameters are named as in the U-Net."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        layers_per_block: int = 2,
        num_attention_heads: int = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        time: str = "timestep",
    ):
        """`time`: "timestep" gives it the U-Net's timesteps, "fixed" always 0 (its features then serve all steps)."""
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        time_channels = 4 * first
        attention = {"num_attention_heads": num_attention_heads, "cross_attention_dim": cross_attention_dim}
        resnets = {"temb_channels": time_channels, "resnet_eps": 1e-5, "resnet_groups": norm_num_groups}
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, time_channels)
        self.down_blocks = nn.ModuleList()
        channels = first
        for level, (kind, features) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            has_attention = kind == "CrossAttnDownBlock2D"
            self.down_blocks.append(
                (CrossAttnDownBlock2D if has_attention else DownBlock2D)(
                    in_channels=channels,
                    out_channels=features,
                    num_layers=layers_per_block,
                    add_downsample=level < len(block_out_channels) - 1,
                    downsample_padding=1,
                    **resnets,
                    **(attention if has_attention else {}),
                )
            )
            channels = features
        self.mid_block = UNetMidBlock2DCrossAttn(in_channels=last, **resnets, **attention)

    def forward(self, inputs: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
        """All skips and the middle's output.

        Args:
            inputs: The adapter's output plus the masked scene's latents [b, c, h, w].
            timesteps: [b].
            tokens: [b, l, d].
        """
        if self.config.time == "fixed":
            timesteps = torch.zeros_like(timesteps)
        temb = self.time_embedding(self.time_proj(timesteps).to(inputs.dtype))
        x = self.conv_in(inputs)
        features = [x]
        for block in self.down_blocks:
            if isinstance(block, CrossAttnDownBlock2D):
                x, outputs = block(hidden_states=x, temb=temb, encoder_hidden_states=tokens)
            else:
                x, outputs = block(hidden_states=x, temb=temb)
            features += outputs
        return [*features, self.mid_block(x, temb, encoder_hidden_states=tokens)]
