"""What a sampler is compiled for, from a checkpoint's configuration and the caller's choices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp
import pydantic
import tyro
from jax.typing import DTypeLike

from dtc_jax.config import BoxOutline, DiffusionConfig, ExperimentConfig, ModelConfig, SamplingConfig
from dtc_jax.data.images import InputError
from dtc_jax.diffusion import NoiseSchedule, Solver, SolverName, TimestepSpacing, make_schedule, make_solver


def _choice(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the checkpoint's)")


@dataclass(frozen=True, kw_only=True)
class SamplingChoices:
    """How to sample; what is not given is as the checkpoint has it."""

    # Fields as in SamplingConfig, which checks them; keyword arguments of Pipeline; flags of the commands that sample.
    num_inference_steps: Annotated[int | None, _choice("INT")] = None
    """Solver steps."""
    guidance_scale: Annotated[float | None, _choice("FLOAT")] = None
    """How much the reference counts; 1 turns guidance off."""
    guidance_rescale: Annotated[float | None, _choice("FLOAT")] = None
    """Share of the conditional prediction's standard deviation that guidance gives back, from 0 (off) to 1."""
    guidance_interval: Annotated[tuple[float, float] | None, _choice("LOW HIGH")] = None
    """Noise levels LOW < sigma <= HIGH that are guided, sigma = sqrt((1 - abar) / abar); 0 inf guides all."""
    unconditional: Annotated[Literal["tokens", "both"] | None, _choice("{tokens,both}")] = None
    """What guidance compares with: without the reference's tokens, or without tokens and hint."""
    solver: Annotated[SolverName | None, _choice("{ddim,dpmsolver++}")] = None
    """How a step is taken: DDIM, or DPM-Solver++ of second order, which needs fewer steps."""
    eta: Annotated[float | None, _choice("FLOAT")] = None
    """Noise that DDIM adds: 0 none, 1 as much as ancestral sampling."""
    timestep_spacing: Annotated[TimestepSpacing | None, _choice("{leading,trailing,linspace}")] = None
    """How the steps are spread over the noise levels."""
    box_outline: Annotated[BoxOutline | None, _choice("{model,reference}")] = None
    """Who draws the product's outline in a mask that is a box: the model, which paints all of the box, or a reference
    on white, whose own is stretched into the box; the rest of the box is then filled from around it."""


CHECKPOINTS_OWN = SamplingChoices()
"""Nothing chosen."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Everything that decides what is compiled; hashable, so that it can be static under `jax.jit`."""

    model: ModelConfig
    diffusion: DiffusionConfig
    num_inference_steps: int
    guidance: bool = True
    """Whether there is an unconditional branch; without it the guidance scale does not count."""
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    """None: every step is guided."""
    unconditional: Literal["tokens", "both"] = "tokens"
    solver: SolverName = "ddim"
    eta: float = 0.0
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    dtype: DTypeLike = jnp.float32
    """Type of the networks' arithmetic."""


def schedule_of(config: DiffusionConfig) -> NoiseSchedule:
    """The noise schedule that a configuration describes."""
    return make_schedule(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)


def solver_of(settings: SamplerSettings) -> Solver:
    """The solver that settings name."""
    return make_solver(settings.solver, settings.eta)


def resolve_sampling(config: ExperimentConfig, choices: SamplingChoices = CHECKPOINTS_OWN) -> SamplingConfig:
    """A checkpoint's sampling with the caller's choices in it.

    Its eta belongs to its own solver: another solver starts from 0.

    Raises:
        InputError: a choice of the wrong type or out of range; the message names the field.
    """
    chosen = {name: value for name, value in dataclasses.asdict(choices).items() if value is not None}
    own = dataclasses.asdict(config.sampling)
    if chosen.get("solver", own["solver"]) != own["solver"]:
        own["eta"] = 0.0
    try:
        sampling = _SAMPLING.validate_python({**own, **chosen})
    except pydantic.ValidationError as error:
        raise InputError(_one_line(error)) from None
    schedule = schedule_of(config.diffusion)
    try:
        make_solver(sampling.solver, sampling.eta).timesteps(
            schedule, sampling.num_inference_steps, sampling.timestep_spacing, sampling.steps_offset
        )
    except ValueError as error:
        raise InputError(f"num_inference_steps: {error}") from None
    return sampling


def sampler_settings(
    config: ExperimentConfig, choices: SamplingChoices = CHECKPOINTS_OWN, dtype: DTypeLike = jnp.float32
) -> SamplerSettings:
    """The settings of a checkpoint's configuration, some of them replaced by the caller's choices.

    Raises:
        InputError: see `resolve_sampling`.
    """
    sampling = resolve_sampling(config, choices)
    return SamplerSettings(
        model=config.model,
        diffusion=config.diffusion,
        num_inference_steps=sampling.num_inference_steps,
        guidance=sampling.guidance_scale != 1.0,
        guidance_rescale=sampling.guidance_rescale,
        guidance_interval=sampling.guidance_interval,
        unconditional=sampling.unconditional,
        solver=sampling.solver,
        eta=sampling.eta,
        timestep_spacing=sampling.timestep_spacing,
        steps_offset=sampling.steps_offset,
        dtype=dtype,
    )


_SAMPLING: pydantic.TypeAdapter[SamplingConfig] = pydantic.TypeAdapter(SamplingConfig)


def _one_line(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong, with its field."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # SamplingConfig's own words
        return str(first["ctx"]["error"]).removeprefix("sampling.")
    return f"{'.'.join(str(part) for part in first['loc'])} = {first['input']!r}: {first['msg'].lower()}"
