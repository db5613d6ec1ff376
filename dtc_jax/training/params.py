"""The split of a flat parameter dict, keyed by path (`unet/conv_in/kernel`), into trainable and frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from dtc_jax.config import ConfigError

FlatParams = dict[str, Any]


def split_trainable(flat: Mapping[str, Any], pattern: str) -> tuple[FlatParams, FlatParams]:
    """Split parameters into (trainable, frozen) by a regular expression searched in each path.

    Raises:
        ConfigError: the expression is invalid or matches nothing.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"training.trainable: {pattern!r} is not a regular expression: {error}") from None
    trainable = {path: leaf for path, leaf in flat.items() if expression.search(path)}
    if not trainable:
        networks = sorted({path.split("/")[0] for path in flat})
        raise ConfigError(f"training.trainable: {pattern!r} matches no parameter of {', '.join(networks)}")
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return trainable, frozen


def cast_frozen(leaf: Any, dtype: DTypeLike) -> Any:
    """A frozen parameter in the type in which it is kept: floating-point numbers in `dtype`, others as they are."""
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
