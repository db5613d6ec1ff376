"""What a network's recogniser returns, and what recognisers share.

Every module of a network has `recognise(source) -> list[Detected]`: empty if the source holds nothing of the kind. A
recogniser looks at names and shapes alone, and at the config.json beside the file for what these do not show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dtc_jax.weights.layouts import Layout, Shapes, flax_shapes
from dtc_jax.weights.tensor_source import Shape, TensorSource, WeightsError


@dataclass(frozen=True)
class Detected:
    """A network in a file: `import_tensors(layout, source, shapes)` reads it.

    Attributes:
        network: What it is, e.g. "unet", "vae", "dinov2", "vgg", "controlnet", "clip".
        layout: How the file spells it.
        source: Its tensors: all of the file's, or the part under a prefix.
        config: Its sizes: the network's dataclass of `dtc_jax.config`.
        shapes: Flax parameters' shapes for these sizes.
        reason: For people: by what it was recognised, and what is assumed because the file does not show it.
    """

    network: str
    layout: Layout
    source: TensorSource
    config: Any
    shapes: Shapes
    reason: str


def shapes_of(module: nn.Module, *inputs: Shape, method: str | None = None) -> dict[str, Shape]:
    """Flax paths and shapes of a module's parameters, by tracing alone.

    Args:
        module: The module.
        inputs: Shapes of the arguments, float32.
        method: Trace this method instead of `__call__`.
    """
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, method=method), *arguments)
    return flax_shapes(variables["params"])


def length(names: Iterable[str], pattern: str) -> int:
    """Length of a list of modules: one more than the largest number that the pattern's group captures.

    Args:
        names: Names of tensors.
        pattern: Regular expression, matched from the start, with one group for the index: `blocks\\.(\\d+)\\.`.
    """
    found = (re.match(pattern, name) for name in names)
    return max((int(match.group(1)) + 1 for match in found if match), default=0)


def shape_of(source: TensorSource, name: str, ndim: int, network: str) -> Shape:
    """Shape of a tensor that tells a network's sizes.

    Args:
        source: The network's tensors.
        name: Of the tensor.
        ndim: Axes that it must have.
        network: What the source looks like; for the message.

    Raises:
        WeightsError: there is no such tensor, or it has other axes, or an empty one.
    """
    looks = f"looks like {network}, but {source.full_name(name)}"
    if name not in source.keys():  # noqa: SIM118
        raise WeightsError(f"{source.path}: {looks} is missing")
    shape = source.shape(name)
    if len(shape) != ndim or 0 in shape:
        raise WeightsError(f"{source.origin(name)}: {looks} is {list(shape)}, expected {ndim} axes, none of them empty")
    return shape


def is_recognised(
    names: frozenset[str], marks: Collection[str], published: Mapping[str, Any] | None, lacking: int = 0
) -> bool:
    """Whether a network is there: all its marks, or one of them and a config.json that says so.

    Args:
        names: Of the tensors.
        marks: Names that no other network has all of.
        published: What `config_beside` found.
        lacking: How many of the marks may be missing, to be named later as missing tensors.
    """
    found = names.intersection(marks)
    return len(found) >= len(marks) - lacking or (published is not None and bool(found))


def read_json(path: Path) -> Any:
    """A file of JSON.

    Raises:
        WeightsError: it cannot be read, is no JSON, or is nested without end.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        raise WeightsError(f"{path}: not a configuration in JSON") from None


def config_beside(source: TensorSource, class_name: str) -> dict[str, Any] | None:
    """The config.json beside a file of weights, as diffusers and transformers write it, if it describes the class.

    Args:
        source: The weights.
        class_name: diffusers' `_class_name`, or one of transformers' `architectures`, or its `model_type`.

    Raises:
        WeightsError: it is damaged.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: not a configuration in JSON")
    architectures = config.get("architectures")
    names = [config.get("_class_name"), config.get("model_type")]
    return config if class_name in names + (architectures if isinstance(architectures, list) else []) else None


def with_usual(config: Mapping[str, Any], usual: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a published configuration, those that are absent with their usual values.

    Args:
        config: What config.json says.
        usual: Fields and their usual values; numbers must be positive, and lists of the same kind of items.
        where: What the message calls the configuration.

    Raises:
        WeightsError: names the first field that is of another type, or a number that is not positive.
    """
    fields = {name: config.get(name, value) for name, value in usual.items()}
    for name, value in fields.items():
        if not _is_like(value, usual[name]):
            raise WeightsError(f"{where}: {name} = {str(value)[:60]!r} is not {_KINDS[type(usual[name])]}")
    return fields


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a positive whole number",
    float: "a positive number",
    str: "a word",
    list: "a list of positive whole numbers or of words, as it usually is",
}


def _is_like(value: Any, usual: Any) -> bool:
    if isinstance(usual, list):
        return isinstance(value, list) and bool(value) and all(_is_like(item, usual[0]) for item in value)
    if isinstance(usual, bool | str):
        return type(value) is type(usual)
    number = isinstance(value, int) or (isinstance(usual, float) and isinstance(value, float))
    return number and not isinstance(value, bool) and 0 < value < 2**31


def refuse_other_values(config: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuse a published configuration with a setting that our network does not have.

    Args:
        config: What config.json says; a field that is absent has its usual value.
        expected: Fields and the values that our network implements.
        where: What the message calls the configuration.

    Raises:
        WeightsError: names the first other setting.
    """
    for name, value in expected.items():
        found = config.get(name, value)
        if found != value:
            raise WeightsError(f"{where}: {name} = {found!r} is not supported, only {value!r}")
