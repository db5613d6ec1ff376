"""Parameters onto the mesh and back: placement by the one rule of `sharding`, and the compiled step that fits it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.training.objective import make_objective
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.params import FlatParams, cast_frozen
from dtc_jax.training.sharding import batch_sharding, replicated, tree_sharding
from dtc_jax.training.step import TrainState, TrainStep, init_state, make_train_step
from dtc_jax.weights.model_folder import flatten_params, is_model_folder, load_model_folder, unflatten_params


def place(
    config: ExperimentConfig, mesh: Mesh, trainable: FlatParams, frozen: FlatParams
) -> tuple[TrainStep, TrainState, FlatParams]:
    """Put state and frozen parameters on the mesh and compile-wrap the step; the state is donated."""
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    average = config.ema.enabled
    shapes = jax.eval_shape(lambda: init_state(trainable, optimizer, average))
    min_size = config.training.fsdp_min_size
    state_sharding = tree_sharding(mesh, shapes, min_size)
    # Each process holds the same host arrays and fills its own shards.
    values = {path: put(leaf, state_sharding.params[path]) for path, leaf in trainable.items()}
    # The values are the parameters, not a copy: the largest models have no room for both.
    start = jax.jit(
        lambda values: init_state(values, optimizer, average), out_shardings=state_sharding, donate_argnums=0
    )
    state = start(values)
    del values
    frozen_sharding = tree_sharding(mesh, frozen, min_size)
    dtype = config.training.frozen_dtype
    frozen = {path: put(cast_frozen(leaf, dtype), frozen_sharding[path]) for path, leaf in frozen.items()}
    step = jax.jit(
        make_train_step(config, make_objective(config), optimizer),
        in_shardings=(state_sharding, frozen_sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )
    return step, state, frozen


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Host arrays onto the mesh, on every process alike."""

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put_leaf, tree)


def to_host(flat: FlatParams, mesh: Mesh) -> PyTree:
    """Gather a flat dict onto every process's host as a nested dict."""
    gather = jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))
    # One array at a time: the whole tree need not fit on a device.
    return unflatten_params({path: np.asarray(gather(leaf).addressable_data(0)) for path, leaf in flat.items()})


def stored_frozen(run_dir: Path, frozen: FlatParams) -> FlatParams:
    """The frozen parameters that the run began with: resuming must not depend on --init-from being given again."""
    if not frozen or not is_model_folder(run_dir / "frozen"):
        return frozen
    stored = flatten_params(load_model_folder(run_dir / "frozen", dtype=np.float32)[1])
    return {path: stored.get(path, leaf) for path, leaf in frozen.items()}
