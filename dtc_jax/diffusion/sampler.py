"""The sampling loop: one `jax.lax.scan` over the timesteps, all of it traced, nothing returning to the host."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key, PyTree, UInt32

from dtc_jax.diffusion.guidance import classifier_free_guidance, guided_timesteps, rescale_guidance
from dtc_jax.diffusion.parameterization import PredictionType, predict_noise, predict_x0
from dtc_jax.diffusion.randomness import KeyLike, as_typed_key, per_sample_keys
from dtc_jax.diffusion.schedule import NoiseSchedule, at_least_float32
from dtc_jax.diffusion.solver import Solver
from dtc_jax.diffusion.timesteps import TimestepSpacing, previous_timesteps

# (latents [b, ...] float32, timestep int32 scalar, this step's slice of step_inputs or None)
#   -> (conditional model output, unconditional model output or None)
DenoiseFunction: TypeAlias = Callable[[Array, Array, Any], tuple[Array, Array | None]]
GuidanceScale: TypeAlias = float | Float[Array, ""] | Float[Array, " b"]


class Steps(NamedTuple):
    """Consecutive steps of a sampling run, as `sample_steps` goes through them; slices of it are steps, too."""

    number: UInt32[Array, " steps"]
    """Place in the whole run, from 0."""
    timestep: Int32[Array, " steps"]
    previous_timestep: Int32[Array, " steps"]
    """Where each step leads; -1 is the end."""


class SamplerState(NamedTuple):
    """Where a run is between two steps."""

    latents: Float[Array, "b *rest"]
    """float32, at the noise level of the next step's timestep."""
    solver_carry: PyTree
    """What the solver remembers of earlier steps."""
    predicted_x0: Float[Array, "b *rest"]
    """The last step's estimate of the clean latents (zeros before the first step): what a preview shows."""


def sampling_steps(
    schedule: NoiseSchedule,
    solver: Solver,
    num_inference_steps: int,
    spacing: TimestepSpacing = "leading",
    steps_offset: int = 1,
) -> Steps:
    """All steps of a solver's run; the other arguments and errors are those of `sampling_timesteps`."""
    timesteps = solver.timesteps(schedule, num_inference_steps, spacing, steps_offset)
    return Steps(
        jnp.arange(num_inference_steps, dtype=jnp.uint32),
        jnp.asarray(timesteps),
        jnp.asarray(previous_timesteps(timesteps)),
    )


def initial_state(solver: Solver, initial_latents: Float[Array, "b *rest"]) -> SamplerState:
    """The state before the first step, from standard normal noise."""
    latents = at_least_float32(initial_latents)
    return SamplerState(latents, solver.init_carry(latents), jnp.zeros_like(latents))


@overload
def sample(
    denoise_fn: DenoiseFunction,
    schedule: NoiseSchedule,
    solver: Solver,
    prediction_type: PredictionType,
    initial_latents: Float[Array, "b *rest"],
    key: KeyLike,
    *,
    num_inference_steps: int,
    spacing: TimestepSpacing = ...,
    steps_offset: int = ...,
    guidance_scale: GuidanceScale = ...,
    guidance_rescale: GuidanceScale | None = ...,
    guidance_interval: tuple[float, float] | None = ...,
    conditional_fn: DenoiseFunction | None = ...,
    step_inputs: PyTree | None = ...,
    return_trajectory: Literal[False] = ...,
) -> Float[Array, "b *rest"]: ...


@overload
def sample(
    denoise_fn: DenoiseFunction,
    schedule: NoiseSchedule,
    solver: Solver,
    prediction_type: PredictionType,
    initial_latents: Float[Array, "b *rest"],
    key: KeyLike,
    *,
    num_inference_steps: int,
    spacing: TimestepSpacing = ...,
    steps_offset: int = ...,
    guidance_scale: GuidanceScale = ...,
    guidance_rescale: GuidanceScale | None = ...,
    guidance_interval: tuple[float, float] | None = ...,
    conditional_fn: DenoiseFunction | None = ...,
    step_inputs: PyTree | None = ...,
    return_trajectory: Literal[True],
) -> tuple[Float[Array, "b *rest"], Float[Array, "steps b *rest"]]: ...


def sample(
    denoise_fn: DenoiseFunction,
    schedule: NoiseSchedule,
    solver: Solver,
    prediction_type: PredictionType,
    initial_latents: Float[Array, "b *rest"],
    key: KeyLike,
    *,
    num_inference_steps: int,
    spacing: TimestepSpacing = "leading",
    steps_offset: int = 1,
    guidance_scale: GuidanceScale = 1.0,
    guidance_rescale: GuidanceScale | None = None,
    guidance_interval: tuple[float, float] | None = None,
    conditional_fn: DenoiseFunction | None = None,
    step_inputs: PyTree | None = None,
    return_trajectory: bool = False,
) -> Float[Array, "b *rest"] | tuple[Float[Array, "b *rest"], Float[Array, "steps b *rest"]]:
    """Solves the reverse process from noise to latents. Meant to be called within `jax.jit`.

    Latents, guidance and the solver's arithmetic are float32 whatever dtype the network computes in.

    Args:
        denoise_fn: the network with everything but latents and time bound. Called once for each step (traced once) with
            the float32 latents `[b, ...]`, the int32 scalar timestep and this step's slice of `step_inputs`; returns
            `(conditional, unconditional)`, each in the latents' shape, so that both may come from one pass over a
            doubled batch. `unconditional` None: no guidance.
        schedule: the noise schedule.
        solver: how a step is taken, e.g. `DDIM()`.
        prediction_type: what the outputs of denoise_fn are.
        initial_latents: standard normal noise (x_T).
        key: for solvers that add noise. One key (that of sample i is then `fold_in(key, i)`), or one for each sample,
            which makes a sample independent of its place in the batch. Step n draws from `fold_in(sample's key, n)`.
        num_inference_steps: static.
        spacing: see `sampling_timesteps`; the solver says which timesteps exactly (`Solver.timesteps`).
        steps_offset: see `sampling_timesteps`.
        guidance_scale: see `classifier_free_guidance`; may be traced, so that another value compiles nothing anew.
        guidance_rescale: see `rescale_guidance`; None leaves it out.
        guidance_interval: noise levels that are guided, see `guided_timesteps`; elsewhere the conditional output is
            taken as it is. None guides all.
        conditional_fn: like denoise_fn, but without the unconditional output, and thus half the work: what is called
            outside of the interval. None calls denoise_fn at every step.
        step_inputs: pytree of arrays `[num_inference_steps, ...]` in the order of `solver.timesteps`: what depends on
            the time alone and was computed before the loop.
        return_trajectory: also return the latents after each step, `[num_inference_steps, b, ...]`.

    Returns:
        The latents, float32; with `return_trajectory` a pair.

    Raises:
        ValueError: outputs of denoise_fn, `step_inputs` or per-sample keys whose shapes do not fit (while tracing), and
            what `solver.timesteps` raises.
    """
    for leaf in jax.tree.leaves(step_inputs):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != num_inference_steps:
            raise ValueError(f"step_inputs need a leading axis of {num_inference_steps} steps, not {jnp.shape(leaf)}")
    state, trajectory = sample_steps(
        denoise_fn,
        schedule,
        solver,
        prediction_type,
        initial_state(solver, initial_latents),
        key,
        sampling_steps(schedule, solver, num_inference_steps, spacing, steps_offset),
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        guidance_interval=guidance_interval,
        conditional_fn=conditional_fn,
        step_inputs=step_inputs,
        return_trajectory=return_trajectory,
    )
    return state.latents if trajectory is None else (state.latents, trajectory)


def sample_steps(
    denoise_fn: DenoiseFunction,
    schedule: NoiseSchedule,
    solver: Solver,
    prediction_type: PredictionType,
    state: SamplerState,
    key: KeyLike,
    steps: Steps,
    *,
    guidance_scale: GuidanceScale = 1.0,
    guidance_rescale: GuidanceScale | None = None,
    guidance_interval: tuple[float, float] | None = None,
    conditional_fn: DenoiseFunction | None = None,
    step_inputs: PyTree | None = None,
    return_trajectory: bool = False,
) -> tuple[SamplerState, Float[Array, "steps b *rest"] | None]:
    """Some consecutive steps of `sample`, from one state to another: runs in parts are the run in one.

    Args:
        denoise_fn: see `sample`; so are the arguments that are not named here.
        schedule: the noise schedule.
        solver: how a step is taken.
        prediction_type: what the outputs of denoise_fn are.
        state: from `initial_state`, or what an earlier call returned.
        key: the same for all parts of a run.
        steps: a slice of `sampling_steps`; may be traced.
        guidance_scale: see `classifier_free_guidance`.
        guidance_rescale: see `rescale_guidance`.
        guidance_interval: see `guided_timesteps`.
        conditional_fn: what is called outside of the interval.
        step_inputs: arrays whose leading axis is that of `steps`.
        return_trajectory: also return the latents after each step.

    Returns:
        The state after the last step, and the latents after each (None without `return_trajectory`).
    """
    sample_keys = _sample_keys(key, state.latents.shape[0])

    def guided_output(latents: Array, timestep: Array, step_input: Any) -> Array:
        conditional, unconditional = denoise_fn(latents, timestep, step_input)
        return _guided(conditional, unconditional, guidance_scale, guidance_rescale)

    def conditional_output(latents: Array, timestep: Array, step_input: Any) -> Array:
        return at_least_float32((conditional_fn or denoise_fn)(latents, timestep, step_input)[0])

    def scan_step(state: SamplerState, inputs: tuple[Steps, Any]) -> tuple[SamplerState, Any]:
        (number, timestep, previous_timestep), step_input = inputs
        latents = state.latents
        if guidance_interval is None:
            model_output = guided_output(latents, timestep, step_input)
        else:
            guided = guided_timesteps(schedule, timestep, guidance_interval)
            # One of the two runs: outside of the interval there is no unconditional pass.
            model_output = jax.lax.cond(guided, guided_output, conditional_output, latents, timestep, step_input)
        if model_output.shape != latents.shape:
            raise ValueError(f"denoise_fn returned shape {model_output.shape} for latents of shape {latents.shape}")
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(sample_keys, number)
        predicted_x0 = predict_x0(prediction_type, model_output, latents, schedule, timestep)
        latents, solver_carry = solver.step(
            state.solver_carry,
            schedule,
            predicted_x0,
            predict_noise(prediction_type, model_output, latents, schedule, timestep),
            latents,
            timestep,
            previous_timestep,
            step_keys,
        )
        return SamplerState(latents, solver_carry, predicted_x0), latents if return_trajectory else None

    return jax.lax.scan(scan_step, state, (steps, step_inputs))


def _guided(
    conditional: Array,
    unconditional: Array | None,
    guidance_scale: GuidanceScale,
    guidance_rescale: GuidanceScale | None,
) -> Float[Array, "b *rest"]:
    if unconditional is None:
        return at_least_float32(conditional)
    if conditional.shape != unconditional.shape:
        raise ValueError(f"conditional {conditional.shape} and unconditional {unconditional.shape} differ in shape")
    guided = classifier_free_guidance(conditional, unconditional, guidance_scale)
    return guided if guidance_rescale is None else rescale_guidance(guided, conditional, guidance_rescale)


def _sample_keys(key: KeyLike, batch_size: int) -> Key[Array, " b"]:
    key = as_typed_key(key)
    if key.ndim == 0:
        return per_sample_keys(key, batch_size)
    if key.shape != (batch_size,):
        raise ValueError(f"need one key or {batch_size} (one for each sample), not keys of shape {key.shape}")
    return key
