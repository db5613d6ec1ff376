"""Tensors of a PyTorch module through a layout's table, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dtc_jax.weights.mapping import Layout, export_tensors, import_params
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.tensors import ArraySource


def imported(
    state: Mapping[str, Any], layout: Layout, shapes: Mapping[str, tuple[int, ...]], dtype: Any = np.float32
) -> dict[str, Any]:
    """Flax variables from PyTorch's tensors (or arrays)."""
    source = ArraySource({name: np.asarray(tensor) for name, tensor in state.items()})
    return {"params": unflatten_params(import_params(layout, source, shapes, dtype))}


def assert_exact_round_trip(
    state: Mapping[str, Any], layout: Layout, shapes: Mapping[str, tuple[int, ...]], ignored: int = 0
) -> None:
    """Every tensor comes back equal to the bit, under its name; `ignored` of them are known to be left aside."""
    arrays = {name: np.asarray(tensor) for name, tensor in state.items()}
    params = import_params(layout, ArraySource(arrays), shapes, dtype=None)
    assert list(params) == list(shapes)
    exported = {tensor.name: tensor.read() for tensor in export_tensors(layout, params)}
    assert set(exported) <= set(arrays) and len(arrays) - len(exported) == ignored
    for name, array in exported.items():
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape, name
        assert array.tobytes() == np.ascontiguousarray(arrays[name]).tobytes(), name
