"""What a network's recogniser returns, and what recognisers share.

Every module of a network has `recognise(source) -> list[Detected]`: empty if the source holds nothing of the kind. A
recogniser looks at names and shapes alone, and at the config.json beside the file for what these do not show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    try:
        config = json.loads(path.read_text())
        names = [config.get("_class_name"), config.get("model_type"), *(config.get("architectures") or [])]
    except (OSError, ValueError, AttributeError, TypeError):
        raise WeightsError(f"{path}: not a configuration in JSON") from None
    return config if class_name in names else None


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
