"""Schedule, timesteps and solvers against diffusers' `DDIMScheduler` and `DPMSolverMultistepScheduler`.

The oracle runs in float64, so that what is measured is the float32 error of ours alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import (
    DDIM,
    DPMSolverMultistep,
    add_noise,
    make_schedule,
    per_sample_keys,
    per_sample_normal,
    predict_noise,
    predict_x0,
    previous_timesteps,
    sample,
    sampling_timesteps,
    scaled_linear_schedule,
    training_target,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 4, 4, 4)
DIFFUSERS_KINDS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


def make_oracle(**overrides):
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    scheduler = diffusers.DDIMScheduler(**(config | overrides))
    assert scheduler.config.beta_schedule == "scaled_linear"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    if not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@functools.partial(jax.jit, static_argnames=("solver", "prediction_type"))
def our_step(solver, prediction_type, model_output, latents, timestep, previous_timestep, keys):
    schedule = scaled_linear_schedule()
    latents, _ = solver.step(
        solver.init_carry(latents),
        schedule,
        predict_x0(prediction_type, model_output, latents, schedule, timestep),
        predict_noise(prediction_type, model_output, latents, schedule, timestep),
        latents,
        timestep,
        previous_timestep,
        keys,
    )
    return latents


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "cosine"])
def test_alphas_cumprod(kind):
    oracle = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=DIFFUSERS_KINDS[kind])
    ours = make_schedule(kind)
    # diffusers multiplies 1000 float32 numbers; for the cosine its last 1 - 0.999 alone is off by 3e-5.
    np.testing.assert_allclose(
        ours.alphas_cumprod, oracle.alphas_cumprod.numpy(), rtol=1e-4 if kind == "cosine" else 1e-5
    )


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_sampling_timesteps(spacing):
    oracle = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    for num_inference_steps in range(1, 1000):
        oracle.set_timesteps(num_inference_steps)
        if oracle.timesteps.shape[0] > num_inference_steps:
            # Its `trailing` returns one too many, -1, for some numbers of steps.
            assert oracle.timesteps[-1] == -1
            oracle.timesteps = oracle.timesteps[:num_inference_steps]
        ours = sampling_timesteps(scaled_linear_schedule(), num_inference_steps, spacing, steps_offset=1)
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, oracle.timesteps.numpy(), err_msg=str(num_inference_steps))


@pytest.mark.parametrize("num_inference_steps", [7, 10, 20, 40])
def test_previous_timesteps_agree_where_the_oracle_visits_its_own(num_inference_steps):
    timesteps = sampling_timesteps(scaled_linear_schedule(), num_inference_steps, "leading", 1)
    expected = timesteps - 1000 // num_inference_steps
    np.testing.assert_array_equal(previous_timesteps(timesteps), np.where(expected < 0, -1, expected))


@pytest.mark.parametrize("num_inference_steps", [10, 20, 40])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_each_step(prediction_type, eta, spacing, num_inference_steps):
    oracle = make_oracle(prediction_type=prediction_type, timestep_spacing=spacing)
    oracle.set_timesteps(num_inference_steps)
    rng = np.random.default_rng(num_inference_steps)
    solver = DDIM(eta=eta)
    for step, timestep in enumerate(oracle.timesteps.tolist()):
        latents, model_output = rng.standard_normal((2, *SHAPE), dtype=np.float32)
        keys = per_sample_keys(jax.random.key(step), SHAPE[0])
        variance_noise = torch.from_numpy(np.asarray(per_sample_normal(keys, SHAPE[1:]), dtype=np.float64))
        expected = oracle.step(
            torch.from_numpy(model_output).double(),
            timestep,
            torch.from_numpy(latents).double(),
            eta=eta,
            variance_noise=variance_noise if eta else None,
        ).prev_sample
        # The oracle's own idea of the step's end, which for linspace is not the next timestep.
        previous_timestep = timestep - 1000 // num_inference_steps
        actual = our_step(solver, prediction_type, model_output, latents, timestep, previous_timestep, keys)
        assert relative_error(actual, expected) <= 1e-5, (step, timestep)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DDIM(set_alpha_to_one=True), {"set_alpha_to_one": True}),
        (DDIM(clip_sample=True, clip_range=0.8), {"clip_sample": True, "clip_sample_range": 0.8}),
    ],
)
def test_options_of_a_step(ours, theirs):
    oracle = make_oracle(**theirs)
    oracle.set_timesteps(20)
    latents, model_output = np.random.default_rng(0).standard_normal((2, *SHAPE), dtype=np.float32)
    keys = per_sample_keys(jax.random.key(0), SHAPE[0])
    for timestep in (501, 1):
        expected = oracle.step(
            torch.from_numpy(model_output).double(), timestep, torch.from_numpy(latents).double()
        ).prev_sample
        actual = our_step(ours, "epsilon", model_output, latents, timestep, timestep - 50, keys)
        assert relative_error(actual, expected) <= 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_inference_steps", [10, 40])
def test_a_whole_run(prediction_type, num_inference_steps):
    """A small nonlinear "network", guided, over all steps: errors may add up, but not grow."""
    oracle = make_oracle(prediction_type=prediction_type)
    oracle.set_timesteps(num_inference_steps)
    rng = np.random.default_rng(1)
    initial_latents = rng.standard_normal(SHAPE, dtype=np.float32)
    weight = (0.4 * rng.standard_normal((4, 4))).astype(np.float32)
    guidance_scale = 3.0

    latents = torch.from_numpy(initial_latents).double()
    for timestep in oracle.timesteps.tolist():
        hidden = latents @ torch.from_numpy(weight).double() + timestep / 1000
        conditional, unconditional = torch.tanh(hidden), 0.9 * torch.tanh(0.8 * hidden)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        latents = oracle.step(guided, timestep, latents).prev_sample

    def denoise(latents, timestep, step_input):
        hidden = jnp.matmul(latents, weight, precision="highest") + timestep / 1000
        return jnp.tanh(hidden), 0.9 * jnp.tanh(0.8 * hidden)

    @jax.jit
    def run(initial_latents):
        return sample(
            denoise,
            scaled_linear_schedule(),
            DDIM(),
            prediction_type,
            initial_latents,
            jax.random.key(0),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )

    assert relative_error(run(initial_latents), latents) <= 1e-5


def make_dpm_oracle(num_inference_steps, **overrides):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **config,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        **overrides,
    )
    scheduler.set_timesteps(num_inference_steps)
    # Its noise levels in float64; float32 is left where it applies them to the latents.
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[scheduler.timesteps.numpy()]
    scheduler.sigmas = torch.from_numpy(np.append(np.sqrt((1 - abar) / abar), 0.0))
    return scheduler


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_dpm_solver(spacing):
    oracle = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, steps_offset=1)
    for num_inference_steps in [*range(1, 120), 250, 499, 500, 750]:
        oracle.set_timesteps(num_inference_steps)
        theirs = oracle.timesteps.numpy()[:num_inference_steps]  # as above, one too many for some numbers of steps
        ours = DPMSolverMultistep().timesteps(scaled_linear_schedule(), num_inference_steps, spacing, 1)
        np.testing.assert_array_equal(ours, theirs, err_msg=str(num_inference_steps))


@pytest.mark.parametrize("num_inference_steps", [5, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_each_step_of_dpm_solver(prediction_type, spacing, num_inference_steps):
    """On the same outputs; 5 and 20 are below and above the number from which diffusers keeps its order at the end."""
    oracle = make_dpm_oracle(num_inference_steps, prediction_type=prediction_type, timestep_spacing=spacing)
    rng = np.random.default_rng(num_inference_steps)
    timesteps = oracle.timesteps.numpy().astype(np.int32)
    step = jax.jit(functools.partial(our_multistep, DPMSolverMultistep(), prediction_type))
    carry = DPMSolverMultistep().init_carry(jnp.zeros(SHAPE))
    for index, (timestep, previous) in enumerate(zip(timesteps, previous_timesteps(timesteps), strict=True)):
        latents, model_output = rng.standard_normal((2, *SHAPE), dtype=np.float32)
        expected = oracle.step(torch.from_numpy(model_output), int(timestep), torch.from_numpy(latents)).prev_sample
        actual, carry = step(carry, model_output, latents, timestep, previous)
        # lambda, up to 4 and thus rounded to 2e-7, is subtracted over steps of 0.1 and more: 5e-6.
        assert relative_error(actual, expected) <= 1e-5, (index, timestep)


def our_multistep(solver, prediction_type, carry, model_output, latents, timestep, previous_timestep):
    schedule = scaled_linear_schedule()
    return solver.step(
        carry,
        schedule,
        predict_x0(prediction_type, model_output, latents, schedule, timestep),
        predict_noise(prediction_type, model_output, latents, schedule, timestep),
        latents,
        timestep,
        previous_timestep,
        per_sample_keys(jax.random.key(0), SHAPE[0]),
    )


def test_a_whole_run_of_dpm_solver():
    oracle = make_dpm_oracle(20, prediction_type="v_prediction", timestep_spacing="trailing")
    initial_latents = np.random.default_rng(1).standard_normal(SHAPE, dtype=np.float32)
    latents = torch.from_numpy(initial_latents)
    for timestep in oracle.timesteps.tolist():
        latents = oracle.step(torch.tanh(0.7 * latents + timestep / 1000), timestep, latents).prev_sample
    actual = sample(
        lambda latents, timestep, _: (jnp.tanh(0.7 * latents + timestep / 1000), None),
        scaled_linear_schedule(),
        DPMSolverMultistep(),
        "v_prediction",
        initial_latents,
        jax.random.key(0),
        num_inference_steps=20,
        spacing="trailing",
    )
    assert relative_error(actual, latents) <= 1e-5


def test_noising_and_velocity():
    oracle = make_oracle()
    schedule = scaled_linear_schedule()
    latents, noise = np.random.default_rng(2).standard_normal((2, 5, 4, 4, 4), dtype=np.float32)
    timesteps = np.array([0, 1, 250, 700, 999], dtype=np.int32)
    arguments = [
        torch.from_numpy(latents).double(),
        torch.from_numpy(noise).double(),
        torch.from_numpy(timesteps).long(),
    ]
    latents, noise, timesteps = jnp.asarray(latents), jnp.asarray(noise), jnp.asarray(timesteps)
    assert relative_error(add_noise(schedule, latents, noise, timesteps), oracle.add_noise(*arguments)) <= 1e-6
    velocity = training_target("v_prediction", latents, noise, schedule, timesteps)
    assert relative_error(velocity, oracle.get_velocity(*arguments)) <= 1e-6
