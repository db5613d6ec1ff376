"""A run that takes a second: the autoencoder's stage on random pictures, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, OptimizerConfig, TrainingConfig
from dtc_jax.training import loop

CONFIG = ExperimentConfig(
    name="small",
    stage="autoencoder",
    model=presets.test(),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    training=TrainingConfig(
        steps=5, batch_size=2, trainable="^vae/decoder", compute_dtype="float32", log_every=2, checkpoint_every=2
    ),
)


def pictures(step: int) -> dict[str, np.ndarray]:
    """The batch of a step."""
    random = np.random.default_rng(step)
    return {
        "scene": random.integers(0, 256, (2, 16, 16, 3), np.uint8),
        "mask": random.integers(0, 2, (2, 16, 16, 1), np.uint8),
        "index": np.arange(2 * step, 2 * step + 2, dtype=np.uint32),
    }


class Source:
    """Stands in for the data: remembers which steps were asked for, and may do something before a batch is made."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.before: Callable[[int], None] = lambda step: None

    def make(self, config: ExperimentConfig, mesh: jax.sharding.Mesh, on_broken: Any) -> Source:
        """In the place of `make_source`."""
        return self

    def close(self) -> None:
        """Nothing works in the background."""

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        self.before(step)
        self.asked.append(step)
        return pictures(step)


def use(source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Train on this source."""
    monkeypatch.setattr(loop, "make_source", source.make)
    return source


def train(config: ExperimentConfig, run_dir: Path, *init_from: Path) -> dict[str, Any]:
    """Train on one device."""
    return loop.train(config, run_dir, init_from, devices=jax.devices()[:1])


def same(one: Any, other: Any) -> bool:
    """Whether two trees are bit for bit the same."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
