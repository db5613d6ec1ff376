"""Parameters for tests."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PyTree


def random_tree(shapes: PyTree, seed: int = 0, scale: float = 0.5) -> PyTree:
    """Normal values in every tensor, so that nothing is zero or one: what starts at zero has an effect."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * generator.standard_normal(leaf.shape, dtype=np.float32), shapes)


def trained_tree(shapes: PyTree, seed: int = 0) -> PyTree:
    """Values of the sizes that trained networks have, so that deep ones neither vanish nor explode; nothing is zero.

    Kernels get the variance of their fan-in, norm scales 1 + 0.1 n, everything else 0.1 n.
    """
    generator = np.random.default_rng(seed)

    def values(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = generator.standard_normal(leaf.shape, dtype=np.float32)
        if path[-1].key == "kernel":
            return noise / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return 1 + 0.1 * noise if path[-1].key == "scale" else 0.1 * noise

    return jax.tree_util.tree_map_with_path(values, shapes)
