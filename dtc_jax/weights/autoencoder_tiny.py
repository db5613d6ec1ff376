"""TAESD: diffusers' `AutoencoderTiny`, and the two files of madebyollin/taesd.

The names of the two files are those in the files themselves (`taesd_encoder.safetensors`, `taesd_decoder.safetensors`):
indices in a sequence of layers. The decoder's are one more than diffusers', because its first layer limits the latents.
"""

from __future__ import annotations

import re
from dataclasses import replace

from dtc_jax.config import AutoencoderTinyConfig
from dtc_jax.models.autoencoder_tiny import AutoencoderTiny
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries
from dtc_jax.weights.recognition import Detected, is_recognised, length, shape_of, shapes_of
from dtc_jax.weights.tensor_source import Shape, TensorSource, with_prefix

DIFFUSERS = Layout("diffusers AutoencoderTiny", rule_entries)


def _entries(shapes: Shapes, part: str, offset: int) -> list[Entry]:
    def number(match: re.Match[str]) -> str:
        return str(int(match[1]) + offset)

    return [
        replace(entry, names=(re.sub(rf"^{part}\.layers\.(\d+)", number, entry.names[0]),))
        for entry in rule_entries(shapes)
    ]


TAESD_ENCODER = Layout("TAESD's encoder", lambda shapes: _entries(shapes, "encoder", 0))
TAESD_DECODER = Layout("TAESD's decoder", lambda shapes: _entries(shapes, "decoder", 1))


def shapes(config: AutoencoderTinyConfig) -> dict[str, Shape]:
    """Flax parameters of an autoencoder of these sizes."""
    return shapes_of(AutoencoderTiny(config), (1, config.factor, config.factor, config.in_channels))


def part_shapes(shapes: Shapes, part: str) -> dict[str, Shape]:
    """The shapes of one part, which is what `TAESD_ENCODER` and `TAESD_DECODER` are tables of.

    Args:
        shapes: Flax parameters of the whole autoencoder.
        part: `encoder` or `decoder`.
    """
    return {path: shape for path, shape in shapes.items() if path.startswith(f"{part}/")}


# ------------------------------------------------------------------------------------------------------ recognition

# Of the first layers: any one may be missing, to be named later.
_ENCODER_MARKS = ("0.weight", "1.conv.0.weight", "1.conv.2.weight")
_DECODER_MARKS = ("1.weight", "3.conv.0.weight", "3.conv.2.weight")


def recognise(source: TensorSource) -> list[Detected]:
    """The autoencoder, or one of the two halves that TAESD's own files hold (`taesd_encoder`, `taesd_decoder`)."""
    names = frozenset(source.keys())
    if is_recognised(names, {f"encoder.layers.{mark}" for mark in _ENCODER_MARKS}, None, lacking=1):
        encoder, decoder = with_prefix(source, "encoder.layers."), with_prefix(source, "decoder.layers.")
        config = _config(source, _blocks(encoder, 0), _blocks(decoder, 2), encoder)
        return [Detected("vae", DIFFUSERS, source, config, shapes(config), "names")]
    if is_recognised(names, _ENCODER_MARKS, None, lacking=1):
        blocks = _blocks(source, 0)
        config = _config(source, blocks, blocks[::-1], source)
        wanted = part_shapes(shapes(config), "encoder")
        return [Detected("taesd_encoder", TAESD_ENCODER, source, config, wanted, "names")]
    if is_recognised(names, _DECODER_MARKS, None, lacking=1):
        blocks = _blocks(source, 3)
        config = _config(source, blocks[::-1], blocks, None)
        wanted = part_shapes(shapes(config), "decoder")
        return [Detected("taesd_decoder", TAESD_DECODER, source, config, wanted, "names; the encoder's sizes assumed")]
    return []


def _blocks(source: TensorSource, first: int) -> tuple[int, ...]:
    """Numbers of residual blocks between one convolution and the next, from a layer's index on."""
    names = frozenset(source.keys())
    counts = [0]
    for index in range(first, length(names, r"(\d+)\.") - 1):
        if any(name.startswith(f"{index}.conv.") for name in names):
            counts[-1] += 1
        elif index > 0 and {f"{index}.weight", f"{index}.bias"} & names:
            counts.append(0)
    return tuple(counts)


def _config(
    source: TensorSource, encoder_blocks: tuple[int, ...], decoder_blocks: tuple[int, ...], encoder: TensorSource | None
) -> AutoencoderTinyConfig:
    if encoder is None:
        channels, latent_channels = shape_of(source, "1.weight", 4, "TAESD")[:2]
        in_channels = 3
    else:
        last = length(encoder.keys(), r"(\d+)\.") - 1
        channels, in_channels = shape_of(encoder, "0.weight", 4, "TAESD")[:2]
        latent_channels = shape_of(encoder, f"{last}.weight", 4, "TAESD")[0]
    return AutoencoderTinyConfig(
        in_channels=in_channels,
        latent_channels=latent_channels,
        channels=channels,
        num_encoder_blocks=encoder_blocks,
        num_decoder_blocks=decoder_blocks,
    )
