"""The train state and the one compiled train step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.training.ema import ema_decay, update_ema
from dtc_jax.training.objective import Batch, Metrics, Objective
from dtc_jax.training.params import FlatParams
from dtc_jax.weights.model_folder import unflatten_params


class TrainState(NamedTuple):
    """What a step changes; everything needed, with the frozen parameters, to go on exactly."""

    step: Int[Array, ""]
    """Optimizer steps taken, int32; the data position is step * batch size."""
    params: FlatParams
    """Trainable parameters, float32."""
    ema: FlatParams
    """Their moving average, float32."""
    opt_state: PyTree
    """State of the optimizer."""


TrainStep = Callable[[TrainState, FlatParams, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]
"""`(state, frozen, batch, key) -> (state, metrics)`."""


def init_state(trainable: FlatParams, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step; the average starts as a copy of the parameters."""
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in trainable.items()}
    ema = {path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in trainable.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def make_train_step(
    config: ExperimentConfig, objective: Objective, optimizer: optax.GradientTransformation
) -> TrainStep:
    """The pure step `(state, frozen, batch, key) -> (state, metrics)`; the caller compiles it and donates the state.

    Only `state.params` are differentiated; frozen parameters have no gradient, no optimizer state and no average.
    """

    def train_step(
        state: TrainState, frozen: FlatParams, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        def loss_of(trainable: FlatParams) -> tuple[Array, Metrics]:
            return objective(unflatten_params({**frozen, **trainable}), batch, key, state.step)

        gradients, metrics = jax.grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, ema_decay(config.ema.decay, state.step))
        metrics = {**metrics, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step
