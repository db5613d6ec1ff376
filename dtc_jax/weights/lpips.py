"""LPIPS's files: its linear heads alone, as they are published (`vgg.pth`, `alex.pth`), or with the network they read.

Source: richzhang/PerceptualSimilarity, lpips/lpips.py and lpips/weights/v0.1 at
019657996e5c3310a83dba6a8124e3547ca35a6d. The heads' files leave the network out: it is torchvision's VGG-16 or AlexNet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from dtc_jax.config import AlexNetConfig, VGGConfig
from dtc_jax.models.lpips import LPIPS
from dtc_jax.weights import alexnet, vgg
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries
from dtc_jax.weights.recognition import Detected, length, shape_of, shapes_of
from dtc_jax.weights.tensor_source import RenamedSource, Shape, TensorSource, WeightsError

_HEAD = r"lin(\d+)\.model\.(\d)\.weight"
_BUFFERS = (r"scaling_layer\.(shift|scale)", r"lins\..*")
"""What is fixed, and a list of the heads that newer versions save once more."""


def shapes(backbone: VGGConfig | AlexNetConfig) -> dict[str, Shape]:
    """Flax paths and shapes of network (`net/...`) and heads (`lin_0/kernel` and so on)."""
    return shapes_of(LPIPS(backbone), (1, 64, 64, 3), (1, 64, 64, 3))


def head_shapes(channels: Sequence[int]) -> dict[str, Shape]:
    """Flax paths and shapes of the heads alone."""
    return {f"lin_{level}/kernel": (1, 1, count, 1) for level, count in enumerate(channels)}


def heads_layout(place: int = 1) -> Layout:
    """The published files of heads; with dropout before it (which is nothing here), a head's convolution is at 1."""
    return Layout("LPIPS's linear heads", partial(_head_entries, place=place), _BUFFERS)


def whole_layout(slices: Sequence[Sequence[int]], place: int = 1) -> Layout:
    """LPIPS's own state: its network is cut into slices of torchvision's layers.

    Args:
        slices: For every slice, the indices of torchvision's `features` in it.
        place: See `heads_layout`.
    """
    of_layer = {index: number for number, members in enumerate(slices, start=1) for index in members}

    def entries(shapes: Shapes) -> list[Entry]:
        renames = [(rf"^net\.features\.{index}\.", f"net.slice{number}.{index}.") for index, number in of_layer.items()]
        network = {path: shape for path, shape in shapes.items() if path.startswith("net/")}
        heads = {path: shape for path, shape in shapes.items() if not path.startswith("net/")}
        return [*rule_entries(network, renames=renames), *_head_entries(heads, place)]

    return Layout("LPIPS", entries, _BUFFERS)


def _head_entries(shapes: Shapes, place: int) -> list[Entry]:
    return rule_entries(shapes, renames=[(r"^lin\.(\d+)\.", rf"lin\1.model.{place}.")])


def recognise(source: TensorSource) -> list[Detected]:
    """LPIPS's heads in a source, with their network where it holds that."""
    names = source.keys()
    found = [match for name in names if (match := re.fullmatch(_HEAD, name))]
    if not found:
        return []
    place = int(found[0][2])
    levels = length(names, r"lin(\d+)\.")
    channels = [shape_of(source, f"lin{level}.model.{place}.weight", 4, "LPIPS")[1] for level in range(levels)]
    if levels != 5:
        raise WeightsError(
            f"{source.path}: LPIPS with {levels} levels (SqueezeNet's has 7); expected VGG's or AlexNet's"
        )
    members: list[list[int]] = [[] for _ in channels]
    for name in names:
        if match := re.fullmatch(r"net\.slice(\d)\.(\d+)\.weight", name):
            members[int(match[1]) - 1].append(int(match[2]))
    if not any(members):
        reason = f"names; {_network_of(channels)} not in it"
        return [Detected("lpips_heads", heads_layout(place), source, tuple(channels), head_shapes(channels), reason)]
    backbone = _backbone(source)
    layout = whole_layout(members, place)
    return [Detected("lpips", layout, source, backbone, shapes(backbone), f"names; {_network_of(channels)} in it")]


def _network_of(channels: Sequence[int]) -> str:
    published: dict[tuple[int, ...], str] = {
        (64, 128, 256, 512, 512): "VGG-16",
        (64, 192, 384, 256, 256): "AlexNet",
    }
    return published.get(tuple(channels), "its network")


def _backbone(source: TensorSource) -> VGGConfig | AlexNetConfig:
    """Sizes of the network that the state holds, recognised under torchvision's names."""
    stored = {re.sub(r"^net\.slice\d\.", "features.", name): name for name in source.keys() if name.startswith("net.")}  # noqa: SIM118
    plain = RenamedSource(source, list(stored), lambda name: stored.get(name, name))
    for recognise_network in (alexnet.recognise, vgg.recognise):
        for detected in recognise_network(plain):
            config: VGGConfig | AlexNetConfig = detected.config
            return config
    raise WeightsError(f"{source.path}: LPIPS with a network that is neither VGG nor AlexNet")
