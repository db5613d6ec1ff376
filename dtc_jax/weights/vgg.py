"""VGG's files: torchvision's, without batch norm.

Our names are torchvision's (`features.0` is `features_0`; pytorch/vision, torchvision/models/vgg.py). The classifier is
not part of our network. A VGG-19 of the perceptual loss has two convolutions less than the file: its parameters are
those imported whose paths it has.
"""

from __future__ import annotations

import re

from dtc_jax.config import VGGConfig
from dtc_jax.models.vgg import VGG
from dtc_jax.weights.layouts import Layout, rule_entries
from dtc_jax.weights.recognition import Detected, shape_of, shapes_of
from dtc_jax.weights.tensor_source import Shape, TensorSource

TORCHVISION = Layout("torchvision's VGG", rule_entries, ignored=(r"classifier\..*",))


def shapes(config: VGGConfig) -> dict[str, Shape]:
    """Flax paths and shapes of all convolutions, those included that the perceptual loss does not read."""
    size = 2 ** len(config.block_channels)
    return shapes_of(VGG(config), (1, size, size, 3), method="final_features")


def recognise(source: TensorSource) -> list[Detected]:
    """A VGG in a source."""
    names = frozenset(source.keys())
    matches = [re.fullmatch(r"features\.(\d+)\.weight", name) for name in names]
    places = sorted(int(match[1]) for match in matches if match)
    convolutions = [shape for place in places if len(shape := source.shape(f"features.{place}.weight")) == 4]
    # Other networks of torchvision have `features`, too: of larger kernels at first, or with modules in modules.
    if sum(shape[2:] == (3, 3) for shape in convolutions) < 2 or convolutions[0][2:] != (3, 3):
        return []
    kernels = [shape_of(source, f"features.{place}.weight", 4, "a VGG") for place in sorted({0, *places})]
    channels: list[int] = []
    counts: list[int] = []
    for place, before, shape in zip(places, [-3, *places], kernels, strict=False):
        if place - before == 3:  # a convolution, its ReLU and a pooling lie in between
            channels.append(shape[0])
            counts.append(0)
        counts[-1] += 1
    config = VGGConfig(block_channels=tuple(channels), convolutions_per_block=tuple(counts))
    layers = sum(counts) + 3
    return [Detected("vgg", TORCHVISION, source, config, shapes(config), f"names; VGG-{layers}, classifier left out")]
