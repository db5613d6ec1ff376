"""AdamW with warm-up, schedule, clipping and a weight-decay mask (paper 4.1: AdamW, constant 1e-5)."""

from __future__ import annotations

import optax

from dtc_jax.config import ConfigError, OptimizerConfig
from dtc_jax.training.params import FlatParams


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: linear warm-up, then constant or cosine to a hundredth of the peak."""
    warmup = config.warmup_steps
    if warmup >= steps and warmup > 0:
        raise ConfigError(f"optimizer.warmup_steps = {warmup} must be below training.steps = {steps}")
    if config.schedule == "cosine":
        after: optax.Schedule = optax.cosine_decay_schedule(config.learning_rate, steps - warmup, alpha=0.01)
    else:
        after = optax.constant_schedule(config.learning_rate)
    if warmup == 0:
        return after
    # From lr / warmup, not from zero: the first step must not be lost.
    ramp = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def decay_mask(params: FlatParams) -> dict[str, bool]:
    """True for kernels (matrices and convolutions); biases, norms, scales and tables are not decayed."""
    return {path: path.endswith("kernel") for path in params}


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019) over a flat parameter dict, moments in float32."""
    transforms = []
    if config.max_grad_norm is not None:
        transforms.append(optax.clip_by_global_norm(config.max_grad_norm))
    transforms.append(
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    )
    return optax.chain(*transforms)
