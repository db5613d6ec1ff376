"""Parameters for tests."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PyTree


def random_tree(shapes: PyTree, seed: int = 0, scale: float = 0.5) -> PyTree:
    """Normal values in every tensor, so that nothing is zero or one: what starts at zero has an effect."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * generator.standard_normal(leaf.shape, dtype=np.float32), shapes)
