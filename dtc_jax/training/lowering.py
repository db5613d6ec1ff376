"""The real train step, lowered for a mesh without a single parameter: for compiling ahead of time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.abstract import abstract_batch, abstract_params
from dtc_jax.training.params import FlatParams
from dtc_jax.training.placement import ShardedStep, shard_step


class LoweredStep(NamedTuple):
    """The train step, ready to compile, and the shapes of what it takes."""

    lowered: Any
    """`jax.stages.Lowered`."""
    sharded: ShardedStep
    """The step's state and shardings."""
    frozen: FlatParams
    """Shapes of the frozen parameters."""
    batch: PyTree
    """Shapes of the global batch."""


def lower_train_step(config: ExperimentConfig, mesh: Mesh) -> LoweredStep:
    """Lower what `placement.place` would run, for the devices of `mesh`, which need not exist.

    Raises:
        ConfigError: the batch cannot be split over the devices.
    """
    batch_size = config.training.batch_size
    if batch_size % mesh.size:
        raise ConfigError(
            f"training.batch_size = {batch_size} must be a multiple of the number of devices, {mesh.size}"
        )
    trainable, frozen = abstract_params(config)
    sharded = shard_step(config, mesh, trainable, frozen)
    batch = abstract_batch(config, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return LoweredStep(sharded.step.lower(sharded.state_shapes, frozen, batch, key), sharded, frozen, batch)
