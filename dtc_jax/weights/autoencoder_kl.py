"""The autoencoder's files: diffusers' `AutoencoderKL`, with its present and its earlier names, and LDM's single files.

Our names are diffusers' present ones. Its earlier releases called the attention's layers query, key, value, proj_attn:
so they are in Stable Diffusion 1.5's own folder, and diffusers still reads them (`_fix_state_dict_keys_on_load`). LDM's
names are those of CompVis/stable-diffusion at 21f890f (ldm/models/autoencoder.py and, of encoder and decoder,
ldm/modules/diffusionmodules/model.py); its attention is 1x1 convolutions, its decoder counts levels from the finest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dtc_jax.config import AutoencoderKLConfig, ConfigError
from dtc_jax.models.autoencoder_kl import AutoencoderKL
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries
from dtc_jax.weights.recognition import (
    Detected,
    config_beside,
    is_recognised,
    length,
    refuse_other_values,
    shape_of,
    shapes_of,
    with_usual,
)
from dtc_jax.weights.tensor_source import Shape, TensorSource, WeightsError, with_prefix
from dtc_jax.weights.transforms import LINEAR_AS_CONV

LDM_PREFIX = "first_stage_model."
"""What the autoencoder's names start with in a single file of a whole model."""

_NUM_GROUPS = 32
_SCALING_FACTOR = 0.18215


def shapes(config: AutoencoderKLConfig) -> dict[str, Shape]:
    """Flax paths and shapes of an autoencoder's parameters."""
    return shapes_of(AutoencoderKL(config), (1, config.factor, config.factor, config.in_channels))


# ---------------------------------------------------------------------------------------------------------- layouts

_EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", r"to_out\.0": "proj_attn"}


def _earlier_entries(shapes: Shapes) -> list[Entry]:
    renames = [(rf"(attentions\.0)\.{now}\.", rf"\1.{before}.") for now, before in _EARLIER.items()]
    return rule_entries(shapes, renames=renames)


_LDM_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "proj_out"}
_LDM_RENAMES = [
    *((rf"mid_block\.attentions\.0\.{ours}\.", rf"mid.attn_1.{ldm}.") for ours, ldm in _LDM_ATTENTION.items()),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
]


def _ldm_entries(shapes: Shapes) -> list[Entry]:
    transforms = [(r"/attentions_0/(to_q|to_k|to_v|to_out_0)/kernel$", LINEAR_AS_CONV)]
    table = rule_entries(shapes, renames=_LDM_RENAMES, transforms=transforms)
    levels = length((entry.names[0] for entry in table), r"decoder\.up\.(\d+)\.")

    def from_the_finest(found: re.Match[str]) -> str:
        return f"decoder.up.{levels - 1 - int(found.group(1))}."

    return [
        replace(entry, names=(re.sub(r"decoder\.up\.(\d+)\.", from_the_finest, entry.names[0]),)) for entry in table
    ]


DIFFUSERS = Layout("diffusers' AutoencoderKL", rule_entries)
DIFFUSERS_EARLIER = Layout("diffusers' AutoencoderKL (earlier names)", _earlier_entries)
# Files of the autoencoder alone also hold its training's discriminator and moving average.
LDM = Layout("LDM's AutoencoderKL", _ldm_entries, ignored=(r"loss\..*", r"model_ema\..*"))


# ------------------------------------------------------------------------------------------------------------ sizes

_SUPPORTED = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


_USUAL = {
    "in_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": _NUM_GROUPS,
    "mid_block_add_attention": True,
    "scaling_factor": _SCALING_FACTOR,
}
"""diffusers' own defaults, which a config.json may leave out."""


def to_diffusers_config(config: AutoencoderKLConfig) -> dict[str, Any]:
    """diffusers' arguments of `AutoencoderKL` for these sizes."""
    levels = len(config.block_out_channels)
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_add_attention,
        "scaling_factor": config.scaling_factor,
        **_SUPPORTED,
    }


def from_diffusers_config(published: Mapping[str, Any], where: str = "config.json") -> AutoencoderKLConfig:
    """Sizes from diffusers' config.json of an `AutoencoderKL`.

    Raises:
        WeightsError: it has a setting that our network does not.
    """
    sizes = with_usual(published, _USUAL, where)
    refuse_other_values(published, {**_SUPPORTED, "out_channels": sizes["in_channels"]}, where)
    kinds = {*sizes.pop("down_block_types"), *sizes.pop("up_block_types")}
    if kinds - {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
        raise WeightsError(f"{where}: blocks of the kinds {', '.join(sorted(kinds))} are not supported")
    try:
        return AutoencoderKLConfig(block_out_channels=tuple(sizes.pop("block_out_channels")), **sizes)
    except ConfigError as error:
        raise WeightsError(f"{where}: {error}") from None


# ------------------------------------------------------------------------------------------------------ recognition


_LIKE = "an AutoencoderKL"
_MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight")


def recognise(source: TensorSource) -> list[Detected]:
    """The autoencoder in a source, by itself or inside an LDM single file."""
    names = frozenset(source.keys())
    inner: TensorSource = source
    inside = any(name.startswith(LDM_PREFIX) for name in names)
    if inside:
        inner = with_prefix(source, LDM_PREFIX)
        names = frozenset(inner.keys())
    published = config_beside(source, "AutoencoderKL")
    if not is_recognised(names, _MARKS, {} if inside else published, lacking=1):
        return []
    if "encoder.down.0.block.0.norm1.weight" in names:
        layout, level, layer, middle = LDM, "encoder.down", "block", "encoder.mid.attn_1.norm.weight"
    else:
        earlier = "encoder.mid_block.attentions.0.query.weight" in names
        layout = DIFFUSERS_EARLIER if earlier else DIFFUSERS
        level, layer, middle = "encoder.down_blocks", "resnets", "encoder.mid_block.attentions.0.group_norm.weight"
    if published is not None:
        config = from_diffusers_config(published, f"{source.path}'s config.json")
        return [Detected("vae", layout, inner, config, shapes(config), "names, config.json")]
    escaped = re.escape(level)
    levels = range(length(names, rf"{escaped}\.(\d+)\."))
    first = [shape_of(inner, f"{level}.{i}.{layer}.0.conv1.weight", 4, _LIKE) for i in levels]
    try:
        config = AutoencoderKLConfig(
            in_channels=shape_of(inner, "encoder.conv_in.weight", 4, _LIKE)[1],
            latent_channels=shape_of(inner, "post_quant_conv.weight", 4, _LIKE)[0],
            block_out_channels=tuple(shape[0] for shape in first),
            layers_per_block=length(names, rf"{escaped}\.0\.{layer}\.(\d+)\."),
            norm_num_groups=_NUM_GROUPS,
            mid_block_add_attention=middle in names,
            scaling_factor=_SCALING_FACTOR,
        )
    except ConfigError as error:
        raise WeightsError(f"{source.path}: looks like an AutoencoderKL, but is none ({error})") from None
    reason = f"names; {_NUM_GROUPS} groups per norm and the scaling factor {_SCALING_FACTOR} assumed"
    return [Detected("vae", layout, inner, config, shapes(config), reason)]
