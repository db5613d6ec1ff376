"""Every tensor of an exported folder against the checkpoint's: the same numbers, rounded to the export's type.

Outputs alone do not show all: after a last convolution of zeros everything before it is nothing, and VGG and the
published position table have no output at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from dtc_jax.weights.checkpoint_source import FLAX, Checkpoint
from dtc_jax.weights.dinov2 import POSITIONS
from dtc_jax.weights.export_pytorch import (
    exported_tensors,
    needed_files,
    networks_in,
    original_positions,
)
from dtc_jax.weights.export_pytorch.networks import ExportedNetwork
from dtc_jax.weights.layouts import Layout
from dtc_jax.weights.mapping import differences
from dtc_jax.weights.tensors import LazyTensor, TensorSource, WeightsError, cast, open_tensors


@dataclass(frozen=True)
class WeightsDifference:
    """How far the tensors of one network are off.

    Attributes:
        network: Of the model folder, e.g. "unet".
        error: Of the worst tensor: its largest difference over its largest value; NaN if it holds one.
        tensor: The worst one's name in the export; empty if none differs.
        tolerance: What the error may be: 0, and a rounding where the export has numbers that were computed.
    """

    network: str
    error: float
    tensor: str
    tolerance: float


def compare_weights(checkpoint: Checkpoint, folder: Path) -> list[WeightsDifference]:
    """Compare all tensors, two in memory at a time.

    Args:
        checkpoint: What was exported.
        folder: Where to.

    Raises:
        WeightsError: a file is missing or damaged, or a tensor is missing, unexpected or misshapen.
    """
    config = checkpoint.config
    missing = [name for name in needed_files(config) if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder}: not an export of this model: no {', no '.join(missing[:3])}")
    networks = [network for network in networks_in(folder, config) if network.network in checkpoint.networks]
    rows = [_network(checkpoint, network, folder) for network in networks]
    original = original_positions(folder, config)
    if original is not None:
        found, shapes = original
        _refuse_differences(FLAX, found, shapes)
        table = checkpoint.networks["reference_encoder"]
        ours = LazyTensor(POSITIONS, shapes[POSITIONS], table.dtype(POSITIONS), lambda: table.read(POSITIONS))
        rows.append(_worst("published positions", [ours], found))
    return rows


def _network(checkpoint: Checkpoint, network: ExportedNetwork, folder: Path) -> WeightsDifference:
    source, ours = exported_tensors(checkpoint, network)
    found = open_tensors(folder / network.folder)
    _refuse_differences(network.layout, found, {path: source.shape(path) for path in source.keys()})  # noqa: SIM118
    # Its position table was interpolated, perhaps on another device.
    tolerance = float(ml_dtypes.finfo(found.dtype(ours[0].name)).eps) if network.network == "reference_encoder" else 0.0
    return _worst(network.network, ours, found, tolerance)


def _refuse_differences(layout: Layout, found: TensorSource, shapes: dict[str, tuple[int, ...]]) -> None:
    problem = differences(layout, found, shapes)
    if str(problem):
        raise WeightsError(f"{problem.origin}: not an export of this model: {problem}")


def _worst(network: str, ours: Sequence[LazyTensor], theirs: TensorSource, tolerance: float = 0.0) -> WeightsDifference:
    def errors() -> Iterator[tuple[float, str]]:
        for tensor in ours:
            yield _error(tensor, theirs), tensor.name

    # NaN counts most: it compares as nothing.
    error, name = max(errors(), key=lambda item: float("inf") if np.isnan(item[0]) else item[0])
    return WeightsDifference(network, error, name if error != 0 else "", tolerance)


def _error(tensor: LazyTensor, theirs: TensorSource) -> float:
    found = theirs.read(tensor.name)
    expected = cast(tensor.read(), found.dtype, tensor.name)
    if expected.tobytes() == found.tobytes():
        return 0.0
    expected, found = expected.astype(np.float32), found.astype(np.float32)
    return float(np.abs(expected - found).max() / (np.abs(expected).max() or np.float32(1)))
