import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import (
    add_noise,
    make_schedule,
    scaled_linear_schedule,
    schedule_from_betas,
    signal_and_noise_scale,
    snr,
)


def test_scaled_linear_is_that_of_stable_diffusion():
    schedule = scaled_linear_schedule()
    assert schedule.num_train_timesteps == 1000
    assert schedule.alphas_cumprod.dtype == np.float32
    # The published figures: first and last abar, and the sigmas of the k-diffusion convention, sqrt((1 - abar) / abar).
    np.testing.assert_allclose(schedule.alphas_cumprod[[0, -1]], [0.99915, 0.0046601], rtol=1e-5)
    sigmas = 1.0 / np.sqrt(np.asarray(snr(schedule, jnp.array([0, 999]))))
    np.testing.assert_allclose(sigmas, [0.029167, 14.614647], rtol=1e-4)


def test_both_arrays_are_exact_to_float32():
    schedule = scaled_linear_schedule()
    log_alpha_bar, steps = 0.0, []
    for step in range(1000):
        beta = (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * step / 999) ** 2
        log_alpha_bar += math.log1p(-beta)
        steps.append(log_alpha_bar)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.exp(steps), rtol=1.2e-7)
    np.testing.assert_allclose(schedule.one_minus_alphas_cumprod, -np.expm1(steps), rtol=1.2e-7)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "cosine"])
def test_every_kind_decreases_within_bounds(kind):
    schedule = make_schedule(kind, num_train_timesteps=50)
    assert schedule.num_train_timesteps == 50
    assert np.all(np.diff(schedule.alphas_cumprod) < 0)
    assert schedule.alphas_cumprod[-1] > 0 and schedule.alphas_cumprod[0] < 1


def test_cosine_follows_its_formula_where_betas_are_not_capped():
    schedule = make_schedule("cosine", num_train_timesteps=1000)
    times = np.arange(1, 900) / 1000
    expected = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alphas_cumprod[:899], expected, rtol=1e-6)


def test_wrong_schedules_are_refused():
    # unwrap: past the run-time type check, which would speak first in tests.
    with pytest.raises(ValueError, match="scaled_linear, linear, cosine"):
        inspect.unwrap(make_schedule)("quadratic")
    with pytest.raises(ValueError, match="num_train_timesteps"):
        make_schedule(num_train_timesteps=0)
    with pytest.raises(ValueError, match="beta_start"):
        make_schedule(beta_start=0.1, beta_end=0.01)
    with pytest.raises(ValueError, match="betas"):
        schedule_from_betas(np.array([0.1, 1.0]))


def test_scales_broadcast_over_a_batch_and_square_to_one():
    schedule = scaled_linear_schedule()
    timesteps = jnp.array([0, 500, 999])
    signal_scale, noise_scale = signal_and_noise_scale(schedule, timesteps, ndim=4)
    assert signal_scale.shape == noise_scale.shape == (3, 1, 1, 1)
    np.testing.assert_allclose(signal_scale**2 + noise_scale**2, 1.0, rtol=3e-7)
    np.testing.assert_allclose(jnp.ravel(signal_scale**2), schedule.alphas_cumprod[[0, 500, 999]], rtol=3e-7)
    scalar_signal, _ = signal_and_noise_scale(schedule, 500)
    assert scalar_signal.shape == ()
    assert scalar_signal == signal_scale[1, 0, 0, 0]


def test_add_noise_is_the_forward_process_and_float32():
    schedule = scaled_linear_schedule()
    latents, noise = np.random.default_rng(0).standard_normal((2, 3, 2, 2, 4))
    timesteps = [0, 500, 999]
    expected = np.stack(
        [
            math.sqrt(schedule.alphas_cumprod[t]) * latents[i] + math.sqrt(1 - schedule.alphas_cumprod[t]) * noise[i]
            for i, t in enumerate(timesteps)
        ]
    )
    actual = add_noise(schedule, jnp.asarray(latents), jnp.asarray(noise), jnp.array(timesteps))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    half = add_noise(schedule, jnp.asarray(latents, jnp.bfloat16), jnp.asarray(noise, jnp.bfloat16), 500)
    assert half.dtype == jnp.float32


def test_snr_falls_from_the_first_to_the_last_timestep():
    schedule = scaled_linear_schedule()
    values = np.asarray(snr(schedule, jnp.arange(1000)))
    assert np.all(np.diff(values) < 0)
    np.testing.assert_allclose(values[0], (1 - 0.00085) / 0.00085, rtol=1e-6)


def test_a_schedule_is_an_argument_of_jit():
    """Traced or closed over, the schedule gives the same numbers."""
    schedule = scaled_linear_schedule(num_train_timesteps=10)
    latents, timesteps = jnp.ones((2, 1, 1, 4)), jnp.array([3, 9])
    traced = jax.jit(add_noise)(schedule, latents, latents, timesteps)
    np.testing.assert_allclose(traced, add_noise(schedule, latents, latents, timesteps), rtol=1e-6)
