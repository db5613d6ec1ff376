"""The U-Net's files: diffusers' `UNet2DConditionModel`, and LDM's single files (CompVis, with and without EMA).

Our names are diffusers'. LDM's are those of `UNetModel` in CompVis/stable-diffusion at 21f890f
(ldm/modules/diffusionmodules/openaimodel.py, ldm/modules/attention.py; averages: ldm/modules/ema.py). Paint by Example
(Fantasy-Studio/Paint-by-Example at 52a7e37, ldm/models/diffusion/ddpm.py) concatenates noisy latents, masked latents
and mask, we have diffusers' inpainting order: noisy latents, mask, masked latents. Its mask is also the other way round
(ldm/data/open-images.py): 1 is what to keep; `UNetConfig.mask_channel` says so to the model.
"""

from __future__ import annotations

import re
from dataclasses import replace

from dtc_jax.config import ConfigError, UNetConfig
from dtc_jax.models.unet import UNet2DConditionModel
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries, torch_shapes, with_transform
from dtc_jax.weights.recognition import Detected, config_beside, is_recognised, length, shape_of, shapes_of
from dtc_jax.weights.tensor_source import RenamedSource, Shape, TensorSource, WeightsError, with_prefix
from dtc_jax.weights.transforms import conv_with_inputs
from dtc_jax.weights.unet_config import NUM_GROUPS, NUM_HEADS, from_diffusers_config

LDM_PREFIX = "model.diffusion_model."
"""What the U-Net's names start with in a single file of a whole model."""

LDM_EMA_PREFIX = "model_ema."
"""The same for the moving average, whose names have lost their dots besides."""


def shapes(config: UNetConfig) -> dict[str, Shape]:
    """Flax paths and shapes of a U-Net's parameters."""
    size = config.downsampling
    inputs = (1, size, size, config.in_channels), (1,), (1, 1, config.cross_attention_dim)
    return shapes_of(UNet2DConditionModel(config), *inputs)


# ---------------------------------------------------------------------------------------------------------- layouts


def _diffusers_entries(shapes: Shapes) -> list[Entry]:
    return rule_entries(shapes, whole=("linear_1", "linear_2"))


def ldm_name(name: str, layers_per_block: int, attention_levels: frozenset[str]) -> str:
    """LDM's name of a tensor of the U-Net (or of its encoder alone) from diffusers'.

    Args:
        name: diffusers' name.
        layers_per_block: ResNet blocks per level of the encoder.
        attention_levels: Names of the levels that have attention, e.g. "up_blocks.1".
    """
    for prefix, other in _OUTSIDE_BLOCKS.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    found = re.fullmatch(r"(down_blocks\.(\d+)|up_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        raise ValueError(f"{name}: not a tensor of diffusers' UNet2DConditionModel")
    level, down, up, kind, number, rest = found.groups()
    index = int(number)
    per_level = layers_per_block + 1
    if kind == "resnets":
        rest = _in_resnet(rest)
    if level == "mid_block":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(int(down) + 1) * per_level}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        place = 2 if level in attention_levels else 1
        return f"output_blocks.{int(up) * per_level + layers_per_block}.{place}.{rest}"
    block = (
        f"input_blocks.{1 + int(down) * per_level + index}" if down else f"output_blocks.{int(up) * per_level + index}"
    )
    return f"{block}.{0 if kind == 'resnets' else 1}.{rest}"


_OUTSIDE_BLOCKS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _in_resnet(rest: str) -> str:
    layer, leaf = rest.split(".")
    return f"{_IN_RESNET[layer]}.{leaf}"


def ldm_entries(shapes: Shapes) -> list[Entry]:
    """The table of LDM's names for a U-Net, or for its encoder and middle alone (a ControlNet's)."""
    table = _diffusers_entries(shapes)
    names = [entry.names[0] for entry in table]
    layers = length(names, r"down_blocks\.0\.resnets\.(\d+)\.")
    levels = frozenset(name.split(".attentions.")[0] for name in names if ".attentions." in name)
    return [replace(entry, names=(ldm_name(entry.names[0], layers, levels),)) for entry in table]


DIFFUSERS = Layout("diffusers' UNet2DConditionModel", _diffusers_entries)
LDM = Layout("LDM's UNetModel", ldm_entries)

# Our input channel i is Paint by Example's input channel [i].
_PAINT_BY_EXAMPLE_INPUTS = conv_with_inputs((0, 1, 2, 3, 8, 4, 5, 6, 7))
PAINT_BY_EXAMPLE = with_transform(
    DIFFUSERS, "Paint by Example's UNet2DConditionModel", "conv_in/kernel", _PAINT_BY_EXAMPLE_INPUTS
)
PAINT_BY_EXAMPLE_LDM = with_transform(
    LDM, "Paint by Example's UNetModel (LDM)", "conv_in/kernel", _PAINT_BY_EXAMPLE_INPUTS
)


def ldm_ema_name(name: str) -> str:
    """The moving average's name in a single file, from LDM's name without the prefix."""
    return LDM_EMA_PREFIX + f"diffusion_model.{name}".replace(".", "")


def ldm_ema_source(source: TensorSource, layout: Layout, shapes: Shapes) -> RenamedSource:
    """The moving average in an LDM single file, under the names that the plain weights have without their prefix.

    Args:
        source: The whole file.
        layout: `LDM` or `PAINT_BY_EXAMPLE_LDM`.
        shapes: Flax parameters of the U-Net.

    Raises:
        WeightsError: the file holds no moving average.
    """
    there = set(source.keys())
    names = [name for name in torch_shapes(layout, shapes) if ldm_ema_name(name) in there]
    # What else there is of it keeps its name, and is unexpected.
    known = {ldm_ema_name(name) for name in names}
    others = [name for name in source.keys() if name.startswith(f"{LDM_EMA_PREFIX}diffusion_model")]  # noqa: SIM118
    others = [name for name in others if name not in known]
    if not names:
        raise WeightsError(f"{source.path}: holds no moving average of the U-Net ({LDM_EMA_PREFIX}*)")
    return RenamedSource(
        source, names + others, lambda name: name if name.startswith(LDM_EMA_PREFIX) else ldm_ema_name(name)
    )


# ------------------------------------------------------------------------------------------------------- recognition


_MARKS = (
    "conv_in.weight",
    "conv_out.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "up_blocks.0.resnets.0.conv1.weight",
)


def recognise(source: TensorSource) -> list[Detected]:
    """The U-Nets of Stable Diffusion 1.x in a source; a moving average in a single file is a second one."""
    names = frozenset(source.keys())
    published = config_beside(source, "UNet2DConditionModel")
    if is_recognised(names, _MARKS, published, lacking=1):
        by_example = _is_paint_by_example_folder(source)
        if published is not None:
            config, reason = from_diffusers_config(published, f"{source.path}'s config.json"), "names, config.json"
        else:
            config, reason = config_from_diffusers_names(source)
        return [_detected("unet", PAINT_BY_EXAMPLE if by_example else DIFFUSERS, source, config, reason, by_example)]
    by_example = {"learnable_vector", "proj_out.weight"} <= names
    layout = PAINT_BY_EXAMPLE_LDM if by_example else LDM
    inner: TensorSource = source
    if any(name.startswith(f"{LDM_PREFIX}input_blocks.") for name in names):
        inner = with_prefix(source, LDM_PREFIX)
    elif not {"input_blocks.0.0.weight", "out.2.weight"} <= names:
        return []
    config, reason = config_from_ldm_names(inner)
    found = [_detected("unet", layout, inner, config, reason, by_example)]
    if any(name.startswith(f"{LDM_EMA_PREFIX}diffusion_model") for name in names):
        average = ldm_ema_source(source, layout, found[0].shapes)
        found.append(replace(found[0], network="unet_ema", source=average, reason="names; moving average"))
    return found


def _detected(
    network: str, layout: Layout, source: TensorSource, config: UNetConfig, reason: str, by_example: bool
) -> Detected:
    if by_example:
        config = replace(config, mask_channel="keep")
        reason += "; Paint by Example: another order of the input channels, mask 1 = keep"
    elif config.in_channels == 2 * config.out_channels + 1:
        reason += "; input channels in the order of Stable Diffusion's inpainting model"
    return Detected(network, layout, source, config, shapes(config), reason)


def _is_paint_by_example_folder(source: TensorSource) -> bool:
    index = source.path.absolute().parent.parent / "model_index.json"
    return index.is_file() and '"PaintByExamplePipeline"' in index.read_text(errors="replace")


_LIKE = "a U-Net of Stable Diffusion 1.x"


def config_from_diffusers_names(source: TensorSource) -> tuple[UNetConfig, str]:
    """Sizes of a U-Net, or of a ControlNet's encoder, and for people what of them is assumed."""
    names = frozenset(source.keys())
    levels = range(length(names, r"down_blocks\.(\d+)\."))
    return _config(
        source,
        conv_in="conv_in.weight",
        conv_out="conv_out.weight",
        channels=[shape_of(source, f"down_blocks.{level}.resnets.0.conv1.weight", 4, _LIKE)[0] for level in levels],
        layers_per_block=length(names, r"down_blocks\.0\.resnets\.(\d+)\."),
        attention_levels=[f"down_blocks.{level}.attentions.0.norm.weight" in names for level in levels],
        middle="mid_block.attentions.0",
    )


def config_from_ldm_names(source: TensorSource) -> tuple[UNetConfig, str]:
    """The same from LDM's names without their prefix."""
    names = frozenset(source.keys())
    channels: list[int] = []
    attention: list[bool] = []
    layers: list[int] = []
    new_level = True
    for index in range(1, length(names, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in names:
            new_level = True
            continue
        if new_level:
            channels.append(shape_of(source, f"{block}.0.out_layers.3.weight", 4, _LIKE)[0])
            attention.append(f"{block}.1.norm.weight" in names)
            layers.append(0)
            new_level = False
        layers[-1] += 1
    return _config(
        source,
        conv_in="input_blocks.0.0.weight",
        conv_out="out.2.weight",
        channels=channels,
        layers_per_block=layers[0] if layers else 0,
        attention_levels=attention,
        middle="middle_block.1",
    )


def _config(
    source: TensorSource,
    *,
    conv_in: str,
    conv_out: str,
    channels: list[int],
    layers_per_block: int,
    attention_levels: list[bool],
    middle: str,
) -> tuple[UNetConfig, str]:
    """Sizes, and what of them is assumed."""
    names = frozenset(source.keys())
    in_channels = shape_of(source, conv_in, 4, _LIKE)[1]
    keys = shape_of(source, f"{middle}.transformer_blocks.0.attn2.to_k.weight", 2, _LIKE)
    try:
        config = UNetConfig(
            in_channels=in_channels,
            # A ControlNet has no last convolution: its outputs are its latents' channels.
            out_channels=shape_of(source, conv_out, 4, _LIKE)[0] if conv_out in names else in_channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            attention_levels=tuple(attention_levels),
            num_attention_heads=NUM_HEADS,
            cross_attention_dim=keys[1],
            norm_num_groups=NUM_GROUPS,
        )
    except ConfigError as error:
        raise WeightsError(f"{source.path}: looks like a U-Net, but not of Stable Diffusion 1.x ({error})") from None
    return config, f"names; {NUM_HEADS} attention heads and {NUM_GROUPS} groups per norm assumed"
