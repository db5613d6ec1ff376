"""One table per network, read in both directions: PyTorch's tensors <-> Flax's parameters.

A `Layout` lists entries: which Flax arrays and which PyTorch tensors hold the same numbers, and how to get from the
ones to the others and back, exactly. Most follow from the Flax names by rule (`rule_entries`): path separators become
dots, `layers_3` becomes `layers.3`, `kernel`, `scale`, `embedding` are all PyTorch's `weight`, kernels are transposed.

    tensors = import_tensors(layout, source, shapes)      # named by Flax paths, to write or to keep
    params = import_params(layout, source, shapes)        # {path: float32 array}
    tensors = export_tensors(layout, params_or_source)    # named as in PyTorch

Every tensor is accounted for: one that is missing, unexpected, misshapen, not floating point or not finite is an error
that names it and its file. Nothing is read before a tensor's turn, and nothing is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from dtc_jax.weights.layouts import (
    Entry,
    Layout,
    Shapes,
    flax_shapes,
    join_entries,
    rule_entries,
    torch_name,
    torch_shapes,
    with_transform,
)
from dtc_jax.weights.tensor_source import (
    ArraySource,
    LazyTensor,
    TensorSource,
    WeightsError,
    all_finite,
    cast,
    is_float,
)

__all__ = [
    "Differences",
    "Entry",
    "Layout",
    "Shapes",
    "differences",
    "export_tensors",
    "flax_shapes",
    "ignored_tensors",
    "import_params",
    "import_tensors",
    "join_entries",
    "rule_entries",
    "torch_name",
    "torch_shapes",
    "with_transform",
]


def import_tensors(
    layout: Layout, source: TensorSource, shapes: Shapes, dtype: DTypeLike | None = None
) -> list[LazyTensor]:
    """The network's parameters, in the order of `shapes`, named by Flax paths, to be read one at a time.

    Args:
        layout: How the source spells them.
        source: Where they are; all its tensors must belong to this network (`with_prefix` selects one of several).
        shapes: Flax parameters that are wanted.
        dtype: Convert to this type; None keeps the stored one.

    Raises:
        WeightsError: now, if a tensor is missing, unexpected, misshapen or not floating point; when it is read, if it
            holds NaN or infinities.
    """
    found = differences(layout, source, shapes)
    if str(found):
        raise WeightsError(f"{found.origin}: not what {layout.name} holds: {found}")
    order = {path: number for number, path in enumerate(shapes)}
    tensors: list[LazyTensor] = []
    for entry in layout.entries(shapes):
        stored = source.dtype(entry.names[0])
        for index, path in enumerate(entry.paths):
            values = _values(source, entry.names, entry.transform.to_flax, index, dtype)
            tensors.append(LazyTensor(path, shapes[path], np.dtype(dtype or stored), values))
    return sorted(tensors, key=lambda tensor: order[tensor.name])


def import_params(
    layout: Layout, source: TensorSource, shapes: Shapes, dtype: DTypeLike | None = np.float32
) -> dict[str, np.ndarray]:
    """As `import_tensors`, read: {Flax path: array}. `dtc_jax.weights.model_folder.unflatten_params` nests it."""
    return {tensor.name: tensor.read() for tensor in import_tensors(layout, source, shapes, dtype)}


def export_tensors(
    layout: Layout, params: Mapping[str, Any] | TensorSource, dtype: DTypeLike | None = None
) -> list[LazyTensor]:
    """The tensors of the PyTorch side, sorted by name, to be made one at a time.

    Args:
        layout: How to spell them.
        params: {Flax path: array}, or a source with Flax paths as names (a file of a model folder).
        dtype: Convert to this type; None keeps the stored one.

    Raises:
        WeightsError: when a tensor is read: it holds NaN or infinities, or a value beyond the type's range.
    """
    source: TensorSource = ArraySource(params) if isinstance(params, Mapping) else params
    shapes = {path: source.shape(path) for path in source.keys()}  # noqa: SIM118
    names = torch_shapes(layout, shapes)
    tensors: list[LazyTensor] = []
    for entry in layout.entries(shapes):
        stored = np.dtype(dtype or source.dtype(entry.paths[0]))
        for index, name in enumerate(entry.names):
            values = _values(source, entry.paths, entry.transform.to_torch, index, dtype)
            tensors.append(LazyTensor(name, names[name], stored, values))
    return sorted(tensors, key=lambda tensor: tensor.name)


def ignored_tensors(layout: Layout, source: TensorSource) -> list[LazyTensor]:
    """What an import leaves aside, unchanged: with it an export is the whole file again."""
    names = [name for name in source.keys() if _is_ignored(name, layout)]  # noqa: SIM118
    return [LazyTensor(name, source.shape(name), source.dtype(name), partial(source.read, name)) for name in names]


def _is_ignored(name: str, layout: Layout) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in layout.ignored)


@dataclass(frozen=True)
class Differences:
    """How a source differs from what a layout holds; every list is of names as the source has or would have them.

    Attributes:
        missing: With the shape expected.
        unexpected: With their shape.
        misshapen: With the shape found and the shape expected.
        not_floating: With their type; integers are no weights.
        origin: The file of the first tensor that is there and wrong, or else what the user named.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    not_floating: tuple[str, ...]
    origin: Path

    def __str__(self) -> str:
        """One line with the first few of each kind; empty if there are none."""
        kinds = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("misshapen", self.misshapen),
            ("not floating point", self.not_floating),
        ]
        return "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names)


def differences(layout: Layout, source: TensorSource, shapes: Shapes) -> Differences:
    """Account for every tensor of a source: name, shape and kind of type."""
    expected = torch_shapes(layout, shapes)
    names = source.keys()
    found = frozenset(names)
    unexpected = [name for name in names if name not in expected and not _is_ignored(name, layout)]
    present = [name for name in expected if name in found]
    misshapen = [name for name in present if source.shape(name) != expected[name]]
    integer = [name for name in present if not is_float(source.dtype(name))]
    wrong = [*unexpected, *misshapen, *integer]
    spell = source.full_name
    return Differences(
        missing=tuple(f"{spell(name)} {list(expected[name])}" for name in expected if name not in found),
        unexpected=tuple(f"{spell(name)} {list(source.shape(name))}" for name in unexpected),
        misshapen=tuple(
            f"{spell(name)} is {list(source.shape(name))}, expected {list(expected[name])}" for name in misshapen
        ),
        not_floating=tuple(f"{spell(name)} is {source.dtype(name).name}" for name in integer),
        origin=source.origin(wrong[0]) if wrong else source.path,
    )


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f", and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _values(
    source: TensorSource,
    names: tuple[str, ...],
    convert: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    index: int,
    dtype: DTypeLike | None,
) -> Callable[[], np.ndarray]:
    """Makes one array of an entry when it is called."""

    def values() -> np.ndarray:
        array = convert([_read_finite(source, name) for name in names])[index]
        return np.asarray(array if dtype is None else cast(array, dtype, _where(source, names[0])), order="C")

    return values


def _read_finite(source: TensorSource, name: str) -> np.ndarray:
    array = source.read(name)
    if not all_finite(array):
        bad = array.size - int(np.isfinite(array.astype(np.float32)).sum())
        raise WeightsError(f"{_where(source, name)}: {bad:,} of {array.size:,} values are NaN or infinite")
    return array


def _where(source: TensorSource, name: str) -> str:
    return f"{source.origin(name)}: {source.full_name(name)}"
