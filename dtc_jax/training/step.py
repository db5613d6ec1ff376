"""The train state and the one compiled train step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.ema import ema_decay, update_ema
from dtc_jax.training.objective import Batch, Metrics, Objective
from dtc_jax.training.params import FlatParams
from dtc_jax.weights.model_folder import unflatten_params


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite; the message is one line."""


class TrainState(NamedTuple):
    """What a step changes; everything needed, with the frozen parameters, to go on exactly."""

    step: Int[Array, ""]
    """Steps taken, skipped ones too, int32; the data position is step * batch size."""
    params: FlatParams
    """Trainable parameters, float32."""
    ema: FlatParams
    """Their moving average, float32; empty where `ema.enabled` is false."""
    opt_state: PyTree
    """State of the optimizer."""
    nonfinite_steps: Int[Array, ""]
    """Steps that were skipped because loss or gradient was not finite, int32."""
    nonfinite_in_a_row: Int[Array, ""]
    """How many of the last steps, without one in between that was not skipped, int32."""

    @property
    def averaged(self) -> FlatParams:
        """What is sampled and exported: the moving average, or the parameters where there is none."""
        return self.ema or self.params


TrainStep = Callable[[TrainState, FlatParams, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]
"""`(state, frozen, batch, key) -> (state, metrics)`."""


def init_state(trainable: FlatParams, optimizer: optax.GradientTransformation, average: bool = True) -> TrainState:
    """State before the first step; the average, if there is to be one, starts as a copy of the parameters."""
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in trainable.items()}
    ema = {path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in trainable.items()} if average else {}
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, ema, optimizer.init(params), jnp.zeros_like(zero), jnp.zeros_like(zero))


def make_train_step(
    config: ExperimentConfig, objective: Objective, optimizer: optax.GradientTransformation
) -> TrainStep:
    """The pure step `(state, frozen, batch, key) -> (state, metrics)`; the caller compiles it and donates the state.

    Only `state.params` are differentiated; frozen parameters have no gradient, no optimizer state and no average. A
    step whose loss or gradient is not finite changes nothing but the counters.
    """
    parts = config.training.accumulation_steps

    def train_step(
        state: TrainState, frozen: FlatParams, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        def loss_of(trainable: FlatParams, batch: Batch) -> tuple[Array, Metrics]:
            return objective.loss(unflatten_params({**frozen, **trainable}), batch)

        drawn = objective.draw(batch, key, state.step)
        group = objective.group(drawn["share"].shape[0])
        gradients, metrics = accumulate(jax.grad(loss_of, has_aux=True), state.params, drawn, parts, group)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.ema.enabled:
            ema = update_ema(state.ema, params, ema_decay(config.ema.decay, state.step))
        new, old = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
        params, ema, opt_state = choose(finite, new, old)
        skipped = state.nonfinite_steps + ~finite
        in_a_row = jnp.where(finite, 0, state.nonfinite_in_a_row + 1)
        counters = {"nonfinite_steps": skipped, "nonfinite_in_a_row": in_a_row}
        metrics = {**objective.finish(metrics), "grad_norm": norm}
        metrics |= {name: value.astype(jnp.float32) for name, value in counters.items()}
        return TrainState(state.step + 1, params, ema, opt_state, skipped, in_a_row), metrics

    return train_step


def choose(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """All of one tree or all of the other, element by element: the donated old arrays are overwritten in place."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def accumulate(
    gradient_of: Callable[[FlatParams, Batch], tuple[FlatParams, Metrics]],
    params: FlatParams,
    batch: Batch,
    parts: int,
    group: int,
) -> tuple[FlatParams, Metrics]:
    """Gradients and metrics of a batch, summed over its parts one after the other."""
    if parts == 1:
        return gradient_of(params, batch)
    divided = divide(batch, parts, group)
    shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda leaf: leaf[0], divided))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient_of(params, part)), None

    return jax.lax.scan(add, zeros, divided)[0]


def divide(batch: Batch, parts: int, group: int) -> Batch:
    """Arrays [b, ...] as [parts, b / parts, ...]; groups of neighbouring samples stay together.

    The parts take turns in the batch's order (the first of two has its groups 0, 2, 4, ...). So each device finds its
    share of every part among the rows that it has; of runs of rows, a part would be on some of the devices only.

    Raises:
        ConfigError: the batch has not as many groups for every part.
    """
    size = batch["share"].shape[0]
    if size % (parts * group):
        raise ConfigError(
            f"training.batch_size = {size} must be a multiple of training.accumulation_steps = {parts} times {group}, "
            "the samples of which loss.perceptual_fraction decodes some"
        )

    def divide_leaf(leaf: Array) -> Array:
        turns = leaf.reshape(-1, parts, group, *leaf.shape[1:])
        return jnp.moveaxis(turns, 1, 0).reshape(parts, size // parts, *leaf.shape[1:])

    return jax.tree.map(divide_leaf, dict(batch))


def check_finite(metrics: Mapping[str, float | Float[Array, ""]], config: ExperimentConfig) -> None:
    """Stop a run that has come to nothing.

    Args:
        metrics: Of a step, fetched; none where there is no line.
        config: The experiment.

    Raises:
        NonFiniteError: as many steps in a row as `training.max_nonfinite_steps` were skipped.
    """
    in_a_row, limit = int(metrics.get("nonfinite_in_a_row", 0)), config.training.max_nonfinite_steps
    if in_a_row >= limit:
        raise NonFiniteError(
            f"loss or gradient was not finite in {in_a_row} steps in a row (training.max_nonfinite_steps = {limit}); "
            "the checkpoints hold the parameters from before: lower optimizer.learning_rate or set "
            "optimizer.max_grad_norm, and start again from them"
        )
