"""Diffusion theory as pure functions: schedule, prediction algebra, guidance, solvers and the sampling loop.

Nothing here knows of networks, files, devices or training.
"""

from dtc_jax.diffusion.ddim import DDIM
from dtc_jax.diffusion.dpm_solver import DPMSolverMultistep
from dtc_jax.diffusion.guidance import classifier_free_guidance, guided_timesteps, rescale_guidance
from dtc_jax.diffusion.parameterization import PredictionType, predict_noise, predict_x0, training_target
from dtc_jax.diffusion.randomness import per_sample_keys, per_sample_normal
from dtc_jax.diffusion.sampler import (
    DenoiseFunction,
    SamplerState,
    Steps,
    initial_state,
    sample,
    sample_steps,
    sampling_steps,
)
from dtc_jax.diffusion.schedule import (
    NoiseSchedule,
    ScheduleKind,
    add_noise,
    make_schedule,
    scaled_linear_schedule,
    schedule_from_betas,
    signal_and_noise_scale,
    snr,
)
from dtc_jax.diffusion.solver import Solver
from dtc_jax.diffusion.solvers import SolverName, make_solver
from dtc_jax.diffusion.timesteps import TimestepSpacing, previous_timesteps, sample_timesteps, sampling_timesteps

__all__ = [
    "DDIM",
    "DPMSolverMultistep",
    "DenoiseFunction",
    "NoiseSchedule",
    "PredictionType",
    "SamplerState",
    "ScheduleKind",
    "Solver",
    "SolverName",
    "Steps",
    "TimestepSpacing",
    "add_noise",
    "classifier_free_guidance",
    "guided_timesteps",
    "initial_state",
    "make_schedule",
    "make_solver",
    "per_sample_keys",
    "per_sample_normal",
    "predict_noise",
    "predict_x0",
    "previous_timesteps",
    "rescale_guidance",
    "sample",
    "sample_steps",
    "sample_timesteps",
    "sampling_steps",
    "sampling_timesteps",
    "scaled_linear_schedule",
    "schedule_from_betas",
    "signal_and_noise_scale",
    "snr",
    "training_target",
]
