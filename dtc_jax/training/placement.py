"""Parameters onto the mesh and back: placement by the one rule of `sharding`, and the compiled step that fits it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.training.objective import Metrics, make_objective
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.params import FlatParams, cast_frozen
from dtc_jax.training.sharding import batch_sharding, bytes_per_device, readable_bytes, replicated, tree_sharding
from dtc_jax.training.step import TrainState, TrainStep, init_state, make_train_step
from dtc_jax.weights.model_folder import flatten_params, is_model_folder, load_model_folder, unflatten_params

logger = logging.getLogger("dtc_jax.train")


class ShardedStep(NamedTuple):
    """The train step, wrapped for compilation on a mesh, and where its arguments lie."""

    step: Any
    """`jax.jit` of the train step; the state is donated."""
    state_shapes: TrainState
    """Shapes of the state."""
    state_sharding: TrainState
    """Where they lie."""
    frozen_sharding: FlatParams
    """Where the frozen parameters lie."""
    batch_sharding: Sharding
    """Where every array of the batch lies."""


def shard_step(config: ExperimentConfig, mesh: Mesh, trainable: FlatParams, frozen: FlatParams) -> ShardedStep:
    """Wrap the train step for a mesh; of the parameters, arrays or `jax.ShapeDtypeStruct`, only shapes are read."""
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    shapes = jax.eval_shape(lambda values: init_state(values, optimizer, config.ema.enabled), trainable)
    min_size, overrides = config.training.fsdp_min_size, config.training.sharding_overrides
    state_sharding = tree_sharding(mesh, shapes, min_size, overrides)
    frozen_sharding = tree_sharding(mesh, frozen, min_size, overrides)
    step = jax.jit(
        held_to_batch(make_train_step(config, make_objective(config), optimizer), mesh),
        in_shardings=(state_sharding, frozen_sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )
    return ShardedStep(step, shapes, state_sharding, frozen_sharding, batch_sharding(mesh))


def held_to_batch(step: TrainStep, mesh: Mesh) -> TrainStep:
    """The same step, whose modules' outputs are split like the batch.

    From the shardings of parameters and batch alone the partitioner may choose to gather a layer's activations instead
    of its parameters: at full size on 16 chips, those of the decoder from all chips, hundreds of gigabytes a step.
    """
    if mesh.size == 1:
        return step
    sharding = batch_sharding(mesh)

    def hold(output: Any) -> Any:
        shared = isinstance(output, jax.Array) and output.ndim > 1 and output.shape[0] % mesh.size == 0
        return jax.lax.with_sharding_constraint(output, sharding) if shared else output

    def intercept(method: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        return jax.tree.map(hold, method(*args, **kwargs))

    @functools.wraps(step)
    def held(*arguments: Any) -> tuple[TrainState, Metrics]:
        with nn.intercept_methods(intercept):
            return step(*arguments)

    return held


def place(
    config: ExperimentConfig, mesh: Mesh, trainable: FlatParams, frozen: FlatParams
) -> tuple[jax.stages.Wrapped, TrainState, FlatParams]:
    """Put state and frozen parameters on the mesh and wrap the step for compilation; the state is donated.

    Both dicts are emptied: a host array is let go as soon as it is on the devices, so that no more than the largest is
    in memory twice.
    """
    sharded = shard_step(config, mesh, trainable, frozen)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    # Each process has the same host arrays and fills its own shards.
    values = put_each(trainable, sharded.state_sharding.params)
    frozen = put_each(frozen, sharded.frozen_sharding, config.training.frozen_dtype)
    # The values are the parameters, not a copy: the largest models have no room for both.
    start = jax.jit(
        lambda values: init_state(values, optimizer, config.ema.enabled),
        out_shardings=sharded.state_sharding,
        donate_argnums=0,
    )
    state = start(values)
    log_memory(state, frozen)
    return sharded.step, state, frozen


def log_memory(state: TrainState, frozen: FlatParams) -> None:
    """Say what one device holds before the first step."""
    held = {"parameters": state.params, "average": state.ema, "optimizer": state.opt_state, "frozen": frozen}
    sizes = {name: bytes_per_device(tree) for name, tree in held.items()}
    logger.info(
        "each device holds %s of state: %s",
        readable_bytes(sum(sizes.values())),
        ", ".join(f"{name} {readable_bytes(size)}" for name, size in sizes.items()),
    )


def put_each(flat: FlatParams, shardings: FlatParams, dtype: DTypeLike | None = None) -> FlatParams:
    """Host arrays onto the mesh one by one, as `dtype` if one is given, each taken out of `flat` when it is there."""
    placed = {}
    for path in list(flat):
        leaf = flat.pop(path)
        placed[path] = put(leaf if dtype is None else cast_frozen(leaf, dtype), shardings[path])
    return placed


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Host arrays onto the mesh, on every process alike."""

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put_leaf, tree)


def to_host(flat: FlatParams, mesh: Mesh, keep: bool = True) -> PyTree:
    """Gather a flat dict onto the host as a nested dict.

    Args:
        flat: Arrays on the mesh.
        mesh: The mesh.
        keep: Every process must call this; those that do not keep the arrays hold one at a time and return nothing.
    """
    gather, whole = gatherer(mesh), {}
    # One array at a time: the whole tree need not fit on a device.
    for path, leaf in flat.items():
        # What this process holds all of needs no copy on the devices, and no program that makes one.
        gathered = leaf if leaf.is_fully_addressable else gather(leaf).addressable_data(0)
        if keep:
            whole[path] = np.asarray(gathered)
    return unflatten_params(whole)


@functools.lru_cache(maxsize=1)
def gatherer(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Makes a whole copy of an array on every device; compiled once for each shape and sharding."""
    return jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))


def stored_frozen(run_dir: Path, frozen: FlatParams) -> FlatParams:
    """The frozen parameters that the run began with: resuming must not depend on --init-from being given again."""
    if not frozen or not is_model_folder(run_dir / "frozen"):
        return frozen
    stored = flatten_params(load_model_folder(run_dir / "frozen", dtype=np.float32)[1])
    return {path: stored.get(path, leaf) for path, leaf in frozen.items()}
