"""The U-Net's sizes from diffusers' config.json and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtc_jax.config import ConfigError, UNetConfig
from dtc_jax.weights.recognition import refuse_other_values, with_usual
from dtc_jax.weights.tensor_source import WeightsError

NUM_HEADS = 8
"""Attention heads of Stable Diffusion 1.x, which its tensors do not show."""

NUM_GROUPS = 32
"""Groups of its norms, likewise."""

_SUPPORTED = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "transformer_layers_per_block": 1,
    "encoder_hid_dim": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
}


_NOT_SUPPORTED = {
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "cross_attention_norm": None,
    "mid_block_only_cross_attention": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "reverse_transformer_layers_per_block": None,
}
"""Settings of diffusers that no Stable Diffusion 1.x has, at what leaves them off; an export need not name them."""

_USUAL = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": NUM_HEADS,
    "cross_attention_dim": 1280,
    "norm_num_groups": NUM_GROUPS,
}
"""diffusers' own defaults, which a config.json may leave out; of the heads, Stable Diffusion's."""


def to_diffusers_config(config: UNetConfig) -> dict[str, Any]:
    """diffusers' arguments of `UNet2DConditionModel` for these sizes."""
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.attention_levels]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(config.attention_levels)]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": down,
        "up_block_types": up,
        # The number of heads: diffusers' name of the field is a known mistake.
        "attention_head_dim": config.num_attention_heads,
        "cross_attention_dim": config.cross_attention_dim,
        "norm_num_groups": config.norm_num_groups,
        **_SUPPORTED,
    }


def from_diffusers_config(published: Mapping[str, Any], where: str = "config.json") -> UNetConfig:
    """Sizes from diffusers' config.json of a `UNet2DConditionModel`.

    Raises:
        WeightsError: it has a setting that our network does not.
    """
    refuse_other_values(published, _SUPPORTED | _NOT_SUPPORTED, where)
    heads = published.get("attention_head_dim")
    if isinstance(heads, list):
        setting = f"attention_head_dim = {heads}"
        raise WeightsError(f"{where}: {setting} is not supported: the U-Net must be one of Stable Diffusion 1.x")
    sizes = with_usual(published, _USUAL, where)
    kinds = sizes.pop("down_block_types")
    others = set(kinds) - {"CrossAttnDownBlock2D", "DownBlock2D"}
    if others:
        setting = f"down_block_types {sorted(others)}"
        raise WeightsError(f"{where}: {setting} is not supported: the U-Net must be one of Stable Diffusion 1.x")
    mirrored = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    refuse_other_values(published, {"up_block_types": mirrored}, where)
    try:
        return UNetConfig(
            block_out_channels=tuple(sizes.pop("block_out_channels")),
            attention_levels=tuple(kind == "CrossAttnDownBlock2D" for kind in kinds),
            num_attention_heads=sizes.pop("attention_head_dim"),
            **sizes,
        )
    except ConfigError as error:
        raise WeightsError(f"{where}: {error}") from None
