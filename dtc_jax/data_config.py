"""Where the training samples come from, and how a record becomes a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the training samples come from."""

    __pydantic_config__ = STRICT

    kind: Literal["procedural"] = "procedural"
    """`procedural`: the generated virtual try-all world (no files)."""
    seed: int = 0
    """Seed of the data set."""
    cached: tuple[Literal["tokens", "latents"], ...] = ()
    """What the batches bring with them, computed before: the reference encoder's `tokens`, and the autoencoder's
    `latents`. The networks that would compute it are not run, and where nothing else needs them not loaded."""
