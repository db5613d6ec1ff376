"""Numbers from a caller, refused in one line where they make no sense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dtc_jax.config import ModelConfig
from dtc_jax.data.images import InputError


def check_context(context: float) -> None:
    """Refuse what is no share.

    Raises:
        InputError: not a number of at least 0.
    """
    if not (math.isfinite(context) and context >= 0):
        raise InputError(f"context: must be a number of at least 0, not {context}")


def check_reference(reference: Any, model: ModelConfig) -> None:
    """Refuse a reference that a model cannot see, or the lack of one that it needs.

    Raises:
        InputError: one of the two.
    """
    if model.prompted and reference is not None:
        raise InputError(
            "reference: this checkpoint was tuned on photos of one product, which it paints: it takes no reference; "
            "leave it out"
        )
    if not model.prompted and reference is None:
        raise InputError("reference: missing; give a photo of the product")


def check_seed(seed: Any) -> int:
    """A seed, if it is one.

    Raises:
        InputError: it is no whole number from 0 to 2**32 - 1.
    """
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise InputError(f"seed: must be a whole number from 0 to {2**32 - 1}, not {seed!r}")
    return int(seed)


def check_count(name: str, value: Any) -> int:
    """A number of things, if it is one.

    Raises:
        InputError: it is no whole number from 1.
    """
    if not _is_whole(value) or value < 1:
        raise InputError(f"{name}: must be a whole number of at least 1, not {value!r}")
    return int(value)


def check_feather(feather: Any) -> None:
    """Refuse what is no width.

    Raises:
        InputError: neither None nor a whole number from 0.
    """
    if feather is not None and (not _is_whole(feather) or feather < 0):
        raise InputError(f"feather: must be a whole number of at least 0, not {feather!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
