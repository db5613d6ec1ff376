import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import (
    DDIM,
    DPMSolverMultistep,
    per_sample_keys,
    predict_noise,
    predict_x0,
    previous_timesteps,
    sample,
    sampling_timesteps,
    scaled_linear_schedule,
    signal_and_noise_scale,
    training_target,
)

SCHEDULE = scaled_linear_schedule()
SHAPE = (3, 4, 4, 4)
KEY = jax.random.key(0)


def draw(seed: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32))


def tanh_denoise(latents, timestep, step_input):
    conditional = jnp.tanh(0.7 * latents + timestep / 1000)
    return conditional, 0.5 * conditional


def relative_error(actual, expected) -> float:
    return float(jnp.max(jnp.abs(actual - expected)) / jnp.max(jnp.abs(expected)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("solver", "spacing"),
    [
        (DDIM(), "leading"),
        (DDIM(set_alpha_to_one=True), "linspace"),
        (DDIM(eta=1.0, set_alpha_to_one=True), "trailing"),
    ],
)
def test_a_network_that_knows_the_answer_gets_there(prediction_type, solver, spacing):
    x0, initial_latents = draw(0), draw(1)

    def implied_noise(latents, timestep):
        signal_scale, noise_scale = signal_and_noise_scale(SCHEDULE, timestep)
        return (latents - signal_scale * x0) / noise_scale

    def denoise(latents, timestep, step_input):
        return training_target(prediction_type, x0, implied_noise(latents, timestep), SCHEDULE, timestep), None

    run = functools.partial(sample, denoise, SCHEDULE, solver, prediction_type, num_inference_steps=10, spacing=spacing)
    actual = jax.jit(run)(initial_latents, KEY)
    expected = x0
    if not solver.set_alpha_to_one:
        # Deterministic: the noise implied at the start is still the one at the end.
        first_timestep = int(sampling_timesteps(SCHEDULE, 10, spacing)[0])
        signal_scale, noise_scale = signal_and_noise_scale(SCHEDULE, 0)
        expected = signal_scale * x0 + noise_scale * implied_noise(initial_latents, first_timestep)
    assert relative_error(actual, expected) <= 1e-5


@pytest.mark.parametrize(("eta", "spacing"), [(0.0, "leading"), (0.5, "linspace")])
def test_the_scan_is_the_loop(eta, spacing):
    num_inference_steps, guidance_scale, solver = 6, 2.0, DDIM(eta=eta)
    step_inputs = {"gain": jnp.linspace(0.5, 1.5, num_inference_steps)}

    def denoise(latents, timestep, step_input):
        conditional = step_input["gain"] * jnp.tanh(0.7 * latents + timestep / 1000)
        return conditional, 0.5 * conditional

    timesteps = sampling_timesteps(SCHEDULE, num_inference_steps, spacing)
    latents, expected_trajectory = draw(0), []
    for step, (timestep, previous) in enumerate(zip(timesteps, previous_timesteps(timesteps), strict=True)):
        conditional, unconditional = denoise(latents, int(timestep), {"gain": step_inputs["gain"][step]})
        output = unconditional + guidance_scale * (conditional - unconditional)
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(KEY, i), step) for i in range(SHAPE[0])])
        x0 = predict_x0("v_prediction", output, latents, SCHEDULE, int(timestep))
        noise = predict_noise("v_prediction", output, latents, SCHEDULE, int(timestep))
        latents, _ = solver.step((), SCHEDULE, x0, noise, latents, int(timestep), int(previous), keys)
        expected_trajectory.append(latents)

    run = functools.partial(
        sample,
        denoise,
        SCHEDULE,
        solver,
        "v_prediction",
        num_inference_steps=num_inference_steps,
        spacing=spacing,
        guidance_scale=guidance_scale,
        step_inputs=step_inputs,
        return_trajectory=True,
    )
    actual, trajectory = jax.jit(run)(draw(0), KEY)
    assert trajectory.shape == (num_inference_steps, *SHAPE)
    np.testing.assert_allclose(trajectory, jnp.stack(expected_trajectory), atol=2e-5)
    np.testing.assert_array_equal(actual, trajectory[-1])


def test_another_guidance_scale_compiles_nothing_and_changes_the_sample():
    traces = []

    @jax.jit
    def run(initial_latents, key, guidance_scale):
        traces.append(None)
        return sample(
            tanh_denoise,
            SCHEDULE,
            DDIM(),
            "epsilon",
            initial_latents,
            key,
            num_inference_steps=4,
            guidance_scale=guidance_scale,
        )

    low, high = run(draw(0), KEY, 1.0), run(draw(0), jax.random.key(1), 5.0)
    assert len(traces) == 1
    assert relative_error(low, high) > 0.01


def test_the_program_is_one_scan():
    """40 steps trace as one, and nothing calls back to the host."""
    calls = []

    def denoise(latents, timestep, step_input):
        calls.append((latents.shape, timestep.shape, timestep.dtype))
        return tanh_denoise(latents, timestep, step_input)

    run = functools.partial(sample, denoise, SCHEDULE, DDIM(eta=1.0), "epsilon", num_inference_steps=40)
    program = jax.make_jaxpr(run)(draw(0), KEY)
    (scan,) = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert (scan.params["length"], scan.params["unroll"]) == (40, 1)
    assert "callback" not in str(program)
    assert set(calls) == {(SHAPE, (), jnp.dtype("int32"))} and len(calls) <= 2


def test_without_an_unconditional_output_the_scale_is_not_used():
    def run(denoise, **options):
        return sample(denoise, SCHEDULE, DDIM(), "epsilon", draw(0), KEY, num_inference_steps=3, **options)

    alone = run(lambda *inputs: (tanh_denoise(*inputs)[0], None), guidance_scale=7.0)
    # The default, 1, is the conditional output as well.
    np.testing.assert_allclose(alone, run(tanh_denoise), atol=1e-5)
    assert relative_error(alone, run(tanh_denoise, guidance_scale=7.0)) > 0.01


def test_rescaling_takes_part_when_asked():
    def run(**options):
        return sample(
            tanh_denoise,
            SCHEDULE,
            DDIM(),
            "epsilon",
            draw(0),
            KEY,
            num_inference_steps=3,
            guidance_scale=5.0,
            **options,
        )

    np.testing.assert_allclose(run(guidance_rescale=0.0), run(), atol=1e-5)
    assert relative_error(run(guidance_rescale=0.7), run()) > 0.01


@pytest.mark.parametrize("with_conditional_fn", [False, True])
def test_limited_and_rescaled_guidance_is_the_loop(with_conditional_fn):
    interval, guidance_scale, guidance_rescale = (0.6, 4.0), 3.0, 0.7
    solver = DPMSolverMultistep()

    def denoise(latents, timestep, step_input):
        return jnp.tanh(0.7 * latents + timestep / 1000), 0.3 * jnp.tanh(latents)

    timesteps = solver.timesteps(SCHEDULE, 6, "linspace", 0)
    latents, carry, guided_at = draw(0), solver.init_carry(draw(0)), []
    for timestep, previous in zip(timesteps, previous_timesteps(timesteps), strict=True):
        abar = float(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[timestep])
        output, unconditional = denoise(latents, int(timestep), None)
        if interval[0] < ((1 - abar) / abar) ** 0.5 <= interval[1]:
            guided = unconditional + guidance_scale * (output - unconditional)
            ratio = np.std(output, axis=(1, 2, 3)) / np.std(guided, axis=(1, 2, 3))
            output = guidance_rescale * guided * ratio[:, None, None, None] + (1 - guidance_rescale) * guided
            guided_at.append(int(timestep))
        x0 = predict_x0("v_prediction", output, latents, SCHEDULE, int(timestep))
        latents, carry = solver.step(
            carry, SCHEDULE, x0, x0, latents, int(timestep), int(previous), per_sample_keys(KEY, 3)
        )
    assert guided_at == [666, 500, 333] and timesteps.tolist() == [999, 832, 666, 500, 333, 166]

    def alone(*inputs):
        return denoise(*inputs)[0], None

    actual = jax.jit(
        functools.partial(
            sample,
            denoise,
            SCHEDULE,
            solver,
            "v_prediction",
            num_inference_steps=6,
            spacing="linspace",
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=interval,
            conditional_fn=alone if with_conditional_fn else None,
        )
    )(draw(0), KEY)
    np.testing.assert_allclose(actual, latents, atol=2e-5)


def test_no_unconditional_pass_outside_of_the_interval():
    """Of the two branches of the loop's body one has both networks' outputs and the other the conditional alone."""
    run = functools.partial(
        sample,
        tanh_denoise,
        SCHEDULE,
        DDIM(),
        "epsilon",
        num_inference_steps=4,
        guidance_interval=(1.0, 5.0),
        conditional_fn=lambda latents, *_: (jnp.sin(latents), None),
    )
    program = jax.make_jaxpr(run)(draw(0), KEY)
    (scan,) = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    (cond,) = [equation for equation in scan.params["jaxpr"].eqns if equation.primitive.name == "cond"]
    outside, inside = [str(branch) for branch in cond.params["branches"]]
    assert "sin" in outside and "tanh" not in outside
    assert "tanh" in inside and "sin" not in inside


def test_a_sample_does_not_depend_on_its_batch():
    """With a key for each sample, alone or in any order, the noise added (eta = 1) is the sample's own."""

    def run(initial_latents, keys):
        return sample(tanh_denoise, SCHEDULE, DDIM(eta=1.0), "epsilon", initial_latents, keys, num_inference_steps=4)

    keys, order = per_sample_keys(KEY, 3), jnp.array([2, 0, 1])
    together = run(draw(0), keys)
    np.testing.assert_allclose(run(draw(0)[order], keys[order]), together[order], atol=1e-6)
    np.testing.assert_allclose(run(draw(0)[1:2], keys[1:2]), together[1:2], atol=1e-6)
    np.testing.assert_allclose(run(draw(0), KEY), together, atol=1e-6)
    assert relative_error(run(draw(0), jax.random.key(1)), together) > 0.01
    # Equal starts and keys would give equal samples: these differ by their keys alone.
    equal_starts = run(jnp.broadcast_to(draw(0)[:1], SHAPE), keys)
    assert relative_error(equal_starts[0], equal_starts[1]) > 0.01


def test_each_step_draws_fresh_noise():
    """A network that predicts zero x0 leaves the sum of all steps' noise: equal draws would add up coherently."""

    def run(num_inference_steps):
        _, trajectory = sample(
            lambda latents, timestep, step_input: (jnp.zeros_like(latents), None),
            SCHEDULE,
            DDIM(eta=1.0),
            "sample",
            jnp.zeros(SHAPE),
            KEY,
            num_inference_steps=num_inference_steps,
            return_trajectory=True,
        )
        return np.asarray(trajectory)

    first, second = run(4)[:2].reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9


def test_latents_stay_float32_round_a_bfloat16_network():
    def denoise(latents, timestep, step_input):
        assert latents.dtype == jnp.float32
        return tuple(output.astype(jnp.bfloat16) for output in tanh_denoise(latents, timestep, step_input))

    def run(denoise, initial_latents):
        return sample(
            denoise, SCHEDULE, DDIM(), "epsilon", initial_latents, KEY, num_inference_steps=4, guidance_scale=2.0
        )

    actual = run(denoise, draw(0).astype(jnp.bfloat16))
    assert actual.dtype == jnp.float32
    assert relative_error(actual, run(tanh_denoise, draw(0).astype(jnp.bfloat16).astype(jnp.float32))) < 0.05


def test_solvers_may_carry_what_they_saw():
    @dataclasses.dataclass(frozen=True)
    class Recorder:
        """Moves nothing, adds the x0 of the step before and counts."""

        timesteps = staticmethod(sampling_timesteps)

        def init_carry(self, latents):
            return jnp.zeros((), jnp.int32), jnp.zeros_like(latents)

        def step(self, carry, schedule, predicted_x0, predicted_noise, latents, timestep, previous_timestep, keys):
            count, last_x0 = carry
            return latents + last_x0 + 100.0 * count, (count + 1, predicted_x0)

    def denoise(latents, timestep, step_input):
        return jnp.full_like(latents, 1.0) * timestep, None

    actual = sample(denoise, SCHEDULE, Recorder(), "sample", jnp.zeros(SHAPE), KEY, num_inference_steps=4)
    # Timesteps 751, 501, 251, 1: the last one's x0 is not added any more; counts 0 + 1 + 2 + 3.
    np.testing.assert_allclose(actual, 751 + 501 + 251 + 600)


def test_shapes_that_do_not_fit_are_refused():
    def run(denoise=tanh_denoise, key=KEY, **options):
        return sample(denoise, SCHEDULE, DDIM(), "epsilon", draw(0), key, num_inference_steps=4, **options)

    with pytest.raises(ValueError, match="leading axis of 4 steps"):
        run(step_inputs={"hint": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="one key or 3"):
        run(key=per_sample_keys(KEY, 2))
    with pytest.raises(ValueError, match="denoise_fn returned shape"):
        run(denoise=lambda latents, *_: (latents[..., :2], None))
    with pytest.raises(ValueError, match="differ in shape"):
        run(denoise=lambda latents, *_: (latents, latents[:1]))
