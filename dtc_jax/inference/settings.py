"""What a sampler is compiled for, from a checkpoint's configuration and the caller's choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from dtc_jax.config import DiffusionConfig, ExperimentConfig, ModelConfig
from dtc_jax.data.images import InputError
from dtc_jax.diffusion import NoiseSchedule, TimestepSpacing, make_schedule, sampling_timesteps


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Everything that decides what is compiled; hashable, so that it can be static under `jax.jit`."""

    model: ModelConfig
    diffusion: DiffusionConfig
    num_inference_steps: int
    guidance: bool = True
    """Whether there is an unconditional branch; without it the guidance scale does not count."""
    unconditional: Literal["tokens", "both"] = "tokens"
    eta: float = 0.0
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    dtype: DTypeLike = jnp.float32
    """Type of the networks' arithmetic."""


def schedule_of(config: DiffusionConfig) -> NoiseSchedule:
    """The noise schedule that a configuration describes."""
    return make_schedule(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)


def sampler_settings(
    config: ExperimentConfig,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    unconditional: Literal["tokens", "both"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> SamplerSettings:
    """The settings of a checkpoint's configuration, some of them replaced.

    Raises:
        InputError: a number out of range.
    """
    most = config.diffusion.num_train_timesteps
    if num_inference_steps is not None and not 1 <= num_inference_steps <= most:
        raise InputError(f"num_inference_steps: must be from 1 to {most}, not {num_inference_steps}")
    if guidance_scale is not None and not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise InputError(f"guidance_scale: must be a number of at least 0, not {guidance_scale}")
    defaults = config.sampling
    try:
        sampling_timesteps(
            schedule_of(config.diffusion),
            defaults.num_inference_steps if num_inference_steps is None else num_inference_steps,
            defaults.timestep_spacing,
            defaults.steps_offset,
        )
    except ValueError as error:
        raise InputError(f"num_inference_steps: {error}") from None
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    return SamplerSettings(
        model=config.model,
        diffusion=config.diffusion,
        num_inference_steps=defaults.num_inference_steps if num_inference_steps is None else num_inference_steps,
        guidance=scale != 1.0,
        unconditional=unconditional or defaults.unconditional,
        eta=defaults.eta,
        timestep_spacing=defaults.timestep_spacing,
        steps_offset=defaults.steps_offset,
        dtype=dtype,
    )
