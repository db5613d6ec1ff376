"""HED in ControlNet's layout (`ControlNetHED.pth`).

Source: lllyasviel/ControlNet, annotator/hed/__init__.py at ed85cd1e25a5ed592f7d8178495b4483de0331bf.
"""

from __future__ import annotations

from dtc_jax.config import HEDConfig
from dtc_jax.models.hed import ControlNetHED
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries
from dtc_jax.weights.recognition import Detected, length, shape_of, shapes_of
from dtc_jax.weights.tensor_source import Shape, TensorSource
from dtc_jax.weights.transforms import reshaped


def _entries(shapes: Shapes) -> list[Entry]:
    return rule_entries(shapes, transforms=[(r"^norm$", reshaped((3,), (1, 3, 1, 1)))])


CONTROLNET = Layout("ControlNetHED", _entries)


def shapes(config: HEDConfig) -> dict[str, Shape]:
    """Flax parameters of a detector of these sizes."""
    size = 2 ** len(config.block_channels)
    return shapes_of(ControlNetHED(config), (1, size, size, 3))


def recognise(source: TensorSource) -> list[Detected]:
    """The edge detector in a source."""
    names = frozenset(source.keys())
    if not {"norm", "block1.convs.0.weight", "block1.projection.weight"} <= names:
        return []
    blocks = range(1, length(names, r"block(\d+)\."))
    first = [shape_of(source, f"block{number}.convs.0.weight", 4, "ControlNetHED") for number in blocks]
    config = HEDConfig(
        block_channels=tuple(shape[0] for shape in first),
        convolutions_per_block=tuple(length(names, rf"block{number}\.convs\.(\d+)\.") for number in blocks),
    )
    return [Detected("hed", CONTROLNET, source, config, shapes(config), "names")]
