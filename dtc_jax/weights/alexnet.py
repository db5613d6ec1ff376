"""AlexNet's files: torchvision's. The classifier is not part of our network."""

from __future__ import annotations

from dtc_jax.config import AlexNetConfig
from dtc_jax.models.alexnet import LAYERS, AlexNet
from dtc_jax.weights.layouts import Layout, rule_entries
from dtc_jax.weights.recognition import Detected, shape_of, shapes_of
from dtc_jax.weights.tensor_source import Shape, TensorSource

TORCHVISION = Layout("torchvision's AlexNet", rule_entries, ignored=(r"classifier\..*",))


def shapes(config: AlexNetConfig) -> dict[str, Shape]:
    """Flax paths and shapes of all convolutions."""
    return shapes_of(AlexNet(config), (1, 64, 64, 3), method="block_outputs")


def recognise(source: TensorSource) -> list[Detected]:
    """An AlexNet in a source."""
    first = "features.0.weight"
    if first not in source.keys() or source.shape(first)[2:] != (11, 11):  # noqa: SIM118
        return []
    channels = tuple(shape_of(source, f"features.{index}.weight", 4, "an AlexNet")[0] for index in LAYERS)
    config = AlexNetConfig(channels=channels)
    return [Detected("alexnet", TORCHVISION, source, config, shapes(config), "names; classifier left out")]
