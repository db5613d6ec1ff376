"""AdamW with warm-up, schedule, clipping and a weight-decay mask (paper 4.1: AdamW, constant 1e-5)."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtc_jax.config import ConfigError, OptimizerConfig
from dtc_jax.training.moments import scale_by_adam_bfloat16
from dtc_jax.training.params import FlatParams


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: linear warm-up, then constant, or down to a hundredth of the peak."""
    warmup = config.warmup_steps
    if warmup >= steps and warmup > 0:
        raise ConfigError(f"optimizer.warmup_steps = {warmup} must be below training.steps = {steps}")
    if config.schedule == "cosine":
        after: optax.Schedule = optax.cosine_decay_schedule(config.learning_rate, steps - warmup, alpha=0.01)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.learning_rate, 0.01 * config.learning_rate, steps - warmup)
    else:
        after = optax.constant_schedule(config.learning_rate)
    if warmup == 0:
        return after
    # From lr / warmup, not from zero: the first step must not be lost.
    ramp = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def decay_mask(params: FlatParams, pattern: str = OptimizerConfig().weight_decay_mask) -> dict[str, bool]:
    """True for what the expression matches: by default kernels (matrices and convolutions), nothing else."""
    return {path: re.search(pattern, path) is not None for path in params}


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """As optax's, by a product with one factor.

    Dividing every element is so expensive that the compiler keeps the clipped gradients: a second copy of all of them.
    """

    def update(gradients: FlatParams, state: optax.EmptyState, params: Any = None) -> tuple[FlatParams, Any]:
        norm = optax.tree.norm(gradients)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda gradient: gradient * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019) over a flat parameter dict, after clipping."""
    transforms = []
    if config.max_grad_norm is not None:
        transforms.append(clip_by_global_norm(config.max_grad_norm))
    rate = learning_rate_schedule(config, steps)
    mask = partial(decay_mask, pattern=config.weight_decay_mask)
    if config.moments_dtype == "bfloat16":
        transforms += [
            scale_by_adam_bfloat16(config.b1, config.b2),
            optax.add_decayed_weights(config.weight_decay, mask),
            optax.scale_by_learning_rate(rate),
        ]
    else:
        transforms.append(optax.adamw(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=mask))
    return optax.chain(*transforms)
