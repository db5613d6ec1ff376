"""Which weights a network has, in a few characters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from dtc_jax.weights.model_folder import flatten_params


def fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256, cut to 16 hexadecimal digits, of a network's tensors with their paths and shapes.

    Floating-point numbers count as they are in bfloat16: a network that is kept in bfloat16 has the fingerprint of the
    float32 one that it was rounded from.

    Args:
        params: Nested dict of arrays on the host.
    """
    digest = hashlib.sha256()
    for path, leaf in flatten_params(params).items():
        array = np.asarray(leaf)
        if array.dtype != ml_dtypes.bfloat16 and np.issubdtype(array.dtype, np.floating):
            array = array.astype(ml_dtypes.bfloat16)
        digest.update(f"{path} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]
