"""ControlNet's files, from which a hint encoder can start: diffusers' `ControlNetModel`, and ControlNet's own.

Both are the encoder and the middle of Stable Diffusion's U-Net, as the hint encoder is, and have its names. What else
they hold is left out: the small network that reads their condition (ours is the adapter) and their zero convolutions
(ours are the fusion). ControlNet's own names are those of `ControlNet` in lllyasviel/ControlNet at ed85cd1
(cldm/cldm.py). The first convolution of a ControlNet for Stable Diffusion 1.x reads four channels, as ours does.
"""

from __future__ import annotations

from dtc_jax.config import UNetConfig
from dtc_jax.models.hint import HintEncoder
from dtc_jax.weights import unet
from dtc_jax.weights.layouts import Layout
from dtc_jax.weights.recognition import Detected, config_beside, is_recognised, shape_of, shapes_of
from dtc_jax.weights.tensor_source import Shape, TensorSource, with_prefix
from dtc_jax.weights.unet_config import from_diffusers_config

LDM_PREFIX = "control_model."
"""What the names start with in a single file of a whole model."""

DIFFUSERS = Layout(
    "diffusers' ControlNetModel",
    unet.DIFFUSERS.entries,
    ignored=(r"controlnet_(cond_embedding|down_blocks|mid_block)\..*",),
)
LDM = Layout(
    "ControlNet's own ControlNet", unet.LDM.entries, ignored=(r"(input_hint_block|zero_convs|middle_block_out)\..*",)
)


def shapes(config: UNetConfig, in_channels: int = 4) -> dict[str, Shape]:
    """Flax paths and shapes of a hint encoder's parameters.

    Args:
        config: Of the U-Net that it replicates.
        in_channels: Channels that its first convolution reads: those of the latents.
    """
    size = config.downsampling
    inputs = (1, size, size, in_channels), (1,), (1, 1, config.cross_attention_dim)
    return shapes_of(HintEncoder(config), *inputs)


_MARKS = ("conv_in.weight", "controlnet_cond_embedding.conv_in.weight")


def recognise(source: TensorSource) -> list[Detected]:
    """A ControlNet for Stable Diffusion 1.x in a source, by itself or inside a single file of a whole model."""
    names = frozenset(source.keys())
    inner: TensorSource = source
    if any(name.startswith(LDM_PREFIX) for name in names):
        inner = with_prefix(source, LDM_PREFIX)
        names = frozenset(inner.keys())
    published = config_beside(source, "ControlNetModel")
    if is_recognised(names, _MARKS, published):
        layout, conv_in = DIFFUSERS, "conv_in.weight"
        if published is not None:
            known = {
                **published,
                "mid_block_type": "UNetMidBlock2DCrossAttn",
                "out_channels": published.get("in_channels", 4),
            }
            config, reason = from_diffusers_config(known, f"{source.path}'s config.json"), "names, config.json"
        else:
            config, reason = unet.config_from_diffusers_names(inner)
    elif any(name.startswith("input_hint_block.") for name in names):
        layout, conv_in = LDM, "input_blocks.0.0.weight"
        config, reason = unet.config_from_ldm_names(inner)
    else:
        return []
    channels = shape_of(inner, conv_in, 4, "a ControlNet")[1]
    reason += "; its condition's network and zero convolutions are left out"
    return [Detected("controlnet", layout, inner, config, shapes(config, channels), reason)]
