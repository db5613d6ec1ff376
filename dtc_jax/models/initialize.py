"""First values of parameters, drawn on the host.

`jax.jit(module.init)` traces the whole network to get its parameters and compiles for minutes at full size; unjitted,
it compiles every operation by itself. Shapes from `jax.eval_shape` and numpy draw the same distributions in seconds and
leave the device alone. What a tensor starts from follows from its path; tests hold these rules against the modules'
own initialisers.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

Distribution = Literal["zeros", "ones", "lecun_normal", "he_normal", "normal", "small_normal"]
Rule = tuple[str, Distribution]

RULES: tuple[Rule, ...] = (
    (r"^fusion/.*/to_[qkv]/kernel$", "lecun_normal"),
    (r"^fusion/.*/kernel$", "zeros"),
    (r"^hed/norm$", "zeros"),
    (r"^vgg/.*/kernel$", "he_normal"),
    (r"^vae/(encoder|decoder)/correction/kernel$", "zeros"),
    (r"^vae/logvar$", "zeros"),
    (r"/kernel$", "lecun_normal"),
    (r"/(bias|mask_token)$", "zeros"),
    (r"/(scale|lambda1)$", "ones"),
    (r"/(cls_token|position_embeddings|class_embedding|(position|token)_embedding/embedding)$", "small_normal"),
    (r"^(null_tokens|prompts)/", "normal"),
)
"""Regular expressions over parameter paths; the first that is found in a path decides."""

# Standard deviation of a unit normal that is cut off at two deviations.
_TRUNCATED_STD = 0.87962566103423978


def initialize(shapes: Mapping[str, Any], key: Key[Array, ""], rules: Sequence[Rule] = RULES) -> dict[str, Any]:
    """Draw every tensor on the host.

    Each tensor draws from a generator of its own, seeded by the key and its path: adding a network changes no other.

    Args:
        shapes: Nested dict of `jax.ShapeDtypeStruct`.
        key: A concrete random key; the values are not those that jax.random would draw from it.
        rules: See `RULES`.

    Returns:
        Nested dict of numpy arrays of the given shapes and types.

    Raises:
        ValueError: no rule fits a path.
    """
    words = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
    result = {}
    for path, target in flatten_dict(dict(shapes), sep="/").items():
        generator = np.random.default_rng([*words, zlib.crc32(path.encode())])
        result[path] = _draw(generator, target.shape, distribution_of(path, rules)).astype(target.dtype)
    return unflatten_dict(result, sep="/")


def distribution_of(path: str, rules: Sequence[Rule] = RULES) -> Distribution:
    """What the tensor at this path starts from.

    Raises:
        ValueError: no rule fits.
    """
    for pattern, distribution in rules:
        if re.search(pattern, path):
            return distribution
    raise ValueError(f"{path}: no rule says how to initialise it; add one to dtc_jax.models.initialize.RULES")


def _draw(generator: np.random.Generator, shape: tuple[int, ...], distribution: Distribution) -> np.ndarray:
    if distribution in ("zeros", "ones"):
        return np.full(shape, 0.0 if distribution == "zeros" else 1.0, np.float32)
    if distribution == "normal":
        return generator.standard_normal(shape, dtype=np.float32)
    if distribution == "small_normal":
        return np.float32(0.02) * _truncated_normal(generator, shape)
    variance = (2 if distribution == "he_normal" else 1) / math.prod(shape[:-1])
    return np.float32(math.sqrt(variance) / _TRUNCATED_STD) * _truncated_normal(generator, shape)


def _truncated_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normal within two deviations, by redrawing what falls outside."""
    values = generator.standard_normal(math.prod(shape), dtype=np.float32)
    outside = np.flatnonzero(np.abs(values) > 2)
    while outside.size:
        redrawn = generator.standard_normal(outside.size, dtype=np.float32)
        values[outside] = redrawn
        outside = outside[np.abs(redrawn) > 2]
    return values.reshape(shape)
