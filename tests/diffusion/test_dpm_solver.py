"""DPM-Solver++ 2M against the ODE's integral, and its exact solution for Gaussian data; not the paper's own update.

With lambda = log(alpha / sigma), from t to s:

    x_s = sigma_s / sigma_t x_t + sigma_s int exp(lambda) x0(lambda) dlambda

All in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import DDIM, DPMSolverMultistep, make_solver, per_sample_keys, scaled_linear_schedule

SCHEDULE = scaled_linear_schedule()
SHAPE = (2, 4, 4, 4)
KEYS = per_sample_keys(jax.random.key(0), 2)
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
ALPHA, SIGMA = np.sqrt(ABAR), np.sqrt(1 - ABAR)
LAMBDA = np.log(ALPHA / SIGMA)


def draw(seed: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32))


def step(carry, x0, latents, timestep: int, previous_timestep: int):
    noise = jnp.full(SHAPE, jnp.nan)  # not used
    return DPMSolverMultistep().step(carry, SCHEDULE, x0, noise, latents, timestep, previous_timestep, KEYS)


@pytest.mark.parametrize(("r", "t", "s"), [(981, 941, 901), (999, 600, 500), (301, 251, 1), (3, 2, 1)])
def test_a_step_is_the_integral(r, t, s):
    first, second, latents = draw(0), draw(1), draw(2)
    solver = DPMSolverMultistep()
    _, carry = step(solver.init_carry(first), first, draw(3), r, t)
    actual, _ = step(carry, second, latents, t, s)

    grid = np.linspace(LAMBDA[t], LAMBDA[s], 20001)
    integral = np.sum((np.exp(grid[1:]) + np.exp(grid[:-1])) / 2 * np.diff(grid))
    # The line through both predictions, in the middle of the step.
    middle = (LAMBDA[t] + LAMBDA[s]) / 2
    slope = (np.asarray(second, np.float64) - np.asarray(first, np.float64)) / (LAMBDA[t] - LAMBDA[r])
    x0 = np.asarray(second, np.float64) + (middle - LAMBDA[t]) * slope
    expected = SIGMA[s] / SIGMA[t] * np.asarray(latents, np.float64) + SIGMA[s] * integral * x0
    # The last case's steps are 0.1 long: float32 rounds lambda = 3.3 to 2e-7.
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_the_first_step_is_ddims_and_the_last_is_clean():
    x0, latents = draw(0), draw(1)
    signal, noise = ALPHA[901], SIGMA[901]
    predicted_noise = (latents - signal * x0) / noise
    expected, _ = DDIM().step((), SCHEDULE, x0, predicted_noise, latents, 901, 801, KEYS)
    actual, carry = step(DPMSolverMultistep().init_carry(latents), x0, latents, 901, 801)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    last, _ = step(carry, draw(2), actual, 801, -1)
    np.testing.assert_array_equal(last, draw(2))
    only_step, _ = step(DPMSolverMultistep().init_carry(latents), x0, latents, 901, -1)
    np.testing.assert_array_equal(only_step, x0)


def errors(solver, strides) -> np.ndarray:
    """Where data is N(1, 1/4), the ODE is linear: x - alpha scales with the marginal's standard deviation."""
    mean, variance = 1.0, 0.25
    spread = np.sqrt(ALPHA**2 * variance + SIGMA**2)
    found = []
    for stride in strides:
        latents = jnp.ones((1, 1), jnp.float32)
        carry = solver.init_carry(latents)
        for t in range(960, 160, -stride):
            x0 = mean + ALPHA[t] * variance / spread[t] ** 2 * (latents - ALPHA[t] * mean)
            noise = (latents - ALPHA[t] * x0) / SIGMA[t]
            latents, carry = solver.step(carry, SCHEDULE, x0, noise, latents, t, t - stride, KEYS[:1])
        exact = ALPHA[160] * mean + spread[160] / spread[960] * (1 - ALPHA[960] * mean)
        found.append(abs(float(latents[0, 0]) - exact))
    return np.asarray(found)


def test_it_is_of_second_order():
    strides = (80, 40, 20)
    ours, first_order = errors(DPMSolverMultistep(), strides), errors(DDIM(), strides)
    orders = np.log2(ours[:-1] / ours[1:])
    assert (np.abs(orders - 2) < 0.35).all(), orders
    orders = np.log2(first_order[:-1] / first_order[1:])
    assert (np.abs(orders - 1) < 0.35).all(), orders
    assert (ours < first_order / 3).all()


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [("leading", [751, 501, 251]), ("linspace", [999, 666, 333]), ("trailing", [999, 666, 332])],
)
def test_timesteps_by_hand(spacing, expected):
    np.testing.assert_array_equal(DPMSolverMultistep().timesteps(SCHEDULE, 3, spacing, 1), expected)


def test_what_cannot_be_is_refused():
    for steps in (0, 1000):
        with pytest.raises(ValueError, match=r"num_inference_steps must lie in \[1, 999\]"):
            DPMSolverMultistep().timesteps(SCHEDULE, steps, "leading", 0)
    with pytest.raises(ValueError, match="unknown solver 'euler': choose one of ddim, dpmsolver"):
        make_solver("euler")
    with pytest.raises(ValueError, match="eta must be 0"):
        make_solver("dpmsolver++", 0.5)
    assert make_solver("ddim", 0.5) == DDIM(eta=0.5) and make_solver("dpmsolver++") == DPMSolverMultistep()
