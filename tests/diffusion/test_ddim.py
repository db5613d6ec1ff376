"""DDIM against Gaussian algebra derived here, without the paper's formulas.

With H = sqrt(abar_t / abar_s), the forward process from s to t is x_t = H x_s + N(0, R), R = 1 - H^2, and x_s given x_0
is N(sqrt(abar_s) x_0, P), P = 1 - abar_s. Conditioning x_s on x_t too is one Kalman update. All in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import DDIM, per_sample_keys, per_sample_normal, scaled_linear_schedule

SCHEDULE = scaled_linear_schedule()
KEYS = per_sample_keys(jax.random.key(5), 2)
SHAPE = (2, 4, 4, 4)
NOISE = np.asarray(per_sample_normal(KEYS, SHAPE[1:]), np.float64)
STEPS = [(999, 949), (501, 451), (26, 1), (1, 0), (1, -24)]


def draw(seed: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32))


def alpha_bars(timestep: int, previous_timestep: int) -> tuple[float, float]:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    return alphas_cumprod[timestep], alphas_cumprod[max(previous_timestep, 0)]


def step(solver: DDIM, x0, noise, timestep: int, previous_timestep: int) -> np.ndarray:
    latents, carry = solver.step((), SCHEDULE, x0, noise, jnp.zeros(SHAPE), timestep, previous_timestep, KEYS)
    assert carry == ()
    return np.asarray(latents, np.float64)


@pytest.mark.parametrize(("timestep", "previous_timestep"), STEPS)
def test_eta_one_is_the_posterior(timestep, previous_timestep):
    alpha_t, alpha_s = alpha_bars(timestep, previous_timestep)
    x0, latents = draw(0), draw(1)
    predicted_noise = (latents - np.sqrt(alpha_t) * x0) / np.sqrt(1 - alpha_t)

    transition, transition_variance = np.sqrt(alpha_t / alpha_s), 1 - alpha_t / alpha_s
    prior_mean, prior_variance = np.sqrt(alpha_s) * np.asarray(x0, np.float64), 1 - alpha_s
    gain = prior_variance * transition / (transition**2 * prior_variance + transition_variance)
    mean = prior_mean + gain * (np.asarray(latents, np.float64) - transition * prior_mean)
    variance = (1 - gain * transition) * prior_variance

    actual = step(DDIM(eta=1.0), x0, jnp.asarray(predicted_noise, jnp.float32), timestep, previous_timestep)
    np.testing.assert_allclose(actual, mean + np.sqrt(variance) * NOISE, atol=5e-6)
    # The two parts apart: without x0 and noise only the added noise is left.
    zeros = jnp.zeros(SHAPE)
    only_noise = step(DDIM(eta=1.0), zeros, zeros, timestep, previous_timestep)
    np.testing.assert_allclose(only_noise, np.sqrt(variance) * NOISE, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("timestep", "previous_timestep"), STEPS)
def test_any_eta_keeps_the_marginal(timestep, previous_timestep, eta):
    """With the true x0 and eps, x_s given x0 is N(sqrt(abar_s) x0, 1 - abar_s) whatever eta is."""
    _, alpha_s = alpha_bars(timestep, previous_timestep)
    zeros, ones = jnp.zeros(SHAPE), jnp.ones(SHAPE)
    only_noise = step(DDIM(eta=eta), zeros, zeros, timestep, previous_timestep)
    x0_scale = step(DDIM(eta=eta), ones, zeros, timestep, previous_timestep) - only_noise
    direction_scale = step(DDIM(eta=eta), zeros, ones, timestep, previous_timestep) - only_noise
    np.testing.assert_allclose(x0_scale, np.sqrt(alpha_s), rtol=1e-6)
    np.testing.assert_allclose(direction_scale**2 + (only_noise / NOISE) ** 2, 1 - alpha_s, rtol=2e-5)
    if eta == 0.0:
        assert np.all(only_noise == 0.0)


def test_noise_grows_with_eta_in_proportion():
    zeros = jnp.zeros(SHAPE)
    full = step(DDIM(eta=1.0), zeros, zeros, 501, 451)
    np.testing.assert_allclose(step(DDIM(eta=0.25), zeros, zeros, 501, 451), 0.25 * full, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_end_is_clean_with_alpha_one(eta):
    x0, noise = draw(2), draw(3)
    solver = DDIM(eta=eta, set_alpha_to_one=True)
    np.testing.assert_array_equal(step(solver, x0, noise, 1, -49), np.asarray(x0, np.float64))
    # Before the end the option changes nothing.
    np.testing.assert_array_equal(step(solver, x0, noise, 51, 1), step(DDIM(eta=eta), x0, noise, 51, 1))


def test_the_end_keeps_the_noise_of_timestep_zero_by_default():
    x0, noise = draw(2), draw(3)
    expected = np.sqrt(1 - 0.00085) * np.asarray(x0, np.float64) + np.sqrt(0.00085) * np.asarray(noise, np.float64)
    np.testing.assert_allclose(step(DDIM(), x0, noise, 1, -49), expected, atol=1e-6)


def test_clipping_bounds_x0_alone():
    x0, noise = 3.0 * draw(2), draw(3)
    expected = step(DDIM(), jnp.clip(x0, -0.5, 0.5), noise, 501, 451)
    np.testing.assert_array_equal(step(DDIM(clip_sample=True, clip_range=0.5), x0, noise, 501, 451), expected)


def test_wrong_options_are_refused():
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="eta"):
            DDIM(eta=eta)
    with pytest.raises(ValueError, match="clip_range"):
        DDIM(clip_sample=True, clip_range=0.0)
