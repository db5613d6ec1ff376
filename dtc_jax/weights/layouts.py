"""What a table of names is: `Entry`, `Layout`, and the rule by which most entries follow from the Flax names alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtc_jax.weights.tensor_source import Shape
from dtc_jax.weights.transforms import CONV, IDENTITY, LINEAR, Transform

Shapes = Mapping[str, Shape]
"""Flax paths, joined with "/", to shapes."""


@dataclass(frozen=True)
class Entry:
    """Flax arrays and PyTorch tensors that hold the same numbers.

    Attributes:
        paths: Flax paths; mostly one.
        names: PyTorch names; mostly one.
        transform: Exact conversion between the two tuples of arrays.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    transform: Transform = IDENTITY


@dataclass(frozen=True)
class Layout:
    """How one kind of file spells one network.

    Attributes:
        name: For people, e.g. "diffusers UNet2DConditionModel".
        entries: From the shapes of the Flax parameters to the table that covers each of them exactly once.
        ignored: Regular expressions, matched from the start to the end, of tensors that such files hold and that are
            no parameters of our network: buffers, heads that it lacks. See `ignored_tensors`.
    """

    name: str
    entries: Callable[[Shapes], Sequence[Entry]]
    ignored: tuple[str, ...] = ()


def flax_shapes(tree: Mapping[str, Any]) -> dict[str, Shape]:
    """Flatten a nested dict of anything with a `shape` (arrays, `jax.eval_shape`'s results) to {path: shape}."""
    result: dict[str, Shape] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result |= {f"{key}/{path}": shape for path, shape in flax_shapes(value).items()}
        else:
            result[key] = tuple(value.shape)
    return result


# ---------------------------------------------------------------------------------------------------- names by rule

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_name(path: str, whole: Sequence[str] = ()) -> str:
    """The PyTorch name that a Flax path has by rule: `net_0/proj/kernel` is `net.0.proj.weight`.

    Args:
        path: Flax path.
        whole: Names of modules that end in an underscore and a number without being items of a list (`linear_1`).
    """
    *modules, leaf = path.split("/")
    parts = [module if module in whole else re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    return ".".join([*parts, _LEAVES.get(leaf, leaf)])


def rule_transform(path: str, shape: Shape) -> Transform:
    """What a tensor needs by rule: kernels of 4 axes are convolutions, of 2 axes dense layers; others stay."""
    if not path.endswith("kernel"):
        return IDENTITY
    return {4: CONV, 2: LINEAR}.get(len(shape), IDENTITY)


def rule_entries(
    shapes: Shapes,
    *,
    whole: Sequence[str] = (),
    renames: Sequence[tuple[str, str]] = (),
    transforms: Sequence[tuple[str, Transform]] = (),
) -> list[Entry]:
    """A table of one Flax array to one PyTorch tensor each.

    Args:
        shapes: All Flax parameters of the network.
        whole: See `torch_name`.
        renames: (regular expression, replacement) for `re.sub` on the PyTorch name, applied in order.
        transforms: (regular expression searched in the Flax path, transform): the first that is found replaces the
            rule's.
    """
    entries = []
    for path, shape in shapes.items():
        name = torch_name(path, whole)
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        chosen = [transform for pattern, transform in transforms if re.search(pattern, path)]
        entries.append(Entry((path,), (name,), chosen[0] if chosen else rule_transform(path, shape)))
    return entries


def join_entries(
    entries: Sequence[Entry], groups: Sequence[tuple[Sequence[str], str]], transform: Callable[[Entry], Transform]
) -> list[Entry]:
    """Replace groups of entries by one each, for several Flax arrays that are one PyTorch tensor (q, k, v).

    Args:
        entries: A table of one-to-one entries.
        groups: (PyTorch names of the entries to join, in order; the name of the joint tensor).
        transform: From the group's first entry to the transform of the joint one.
    """
    by_name = {entry.names[0]: entry for entry in entries}
    joint: list[Entry] = []
    for names, name in groups:
        members = [by_name.pop(member) for member in names]
        joint.append(Entry(tuple(member.paths[0] for member in members), (name,), transform(members[0])))
    return [*by_name.values(), *joint]


def with_transform(layout: Layout, name: str, path: str, transform: Transform) -> Layout:
    """A layout that differs from another in how one array is stored."""

    def entries(shapes: Shapes) -> list[Entry]:
        table = layout.entries(shapes)
        return [replace(entry, transform=transform) if entry.paths == (path,) else entry for entry in table]

    return replace(layout, name=name, entries=entries)


def torch_shapes(layout: Layout, shapes: Shapes) -> dict[str, Shape]:
    """Names and shapes of all tensors of the PyTorch side.

    Raises:
        ValueError: the table is wrong: it does not cover every array exactly once, or two tensors share a name.
    """
    table = layout.entries(shapes)
    paths = [path for entry in table for path in entry.paths]
    names = [name for entry in table for name in entry.names]
    if sorted(paths) != sorted(shapes) or len(set(names)) != len(names):
        wrong = set(paths) ^ set(shapes) or {name for name in names if names.count(name) > 1} or set(paths)
        raise ValueError(f"{layout.name}: the table does not cover every tensor once: {', '.join(sorted(wrong)[:3])}")
    result: dict[str, Shape] = {}
    for entry in table:
        result |= dict(zip(entry.names, entry.transform.torch_shapes([shapes[p] for p in entry.paths]), strict=True))
    return result
