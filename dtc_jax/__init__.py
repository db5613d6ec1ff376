"""Diffuse to Choose in JAX: paint a product, given one photo of it, into a masked region of a scene.

import dtc_jax
image = dtc_jax.Pipeline.load()("room.jpg", "mask.png", "chair.jpg")[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtc_jax.inference.pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """Import `Pipeline` when it is first asked for: reading a configuration should not load JAX."""
    if name == "Pipeline":
        from dtc_jax.inference.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
