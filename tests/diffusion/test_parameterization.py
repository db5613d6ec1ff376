import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import add_noise, predict_noise, predict_x0, scaled_linear_schedule, training_target
from dtc_jax.diffusion.parameterization import min_snr_weight

SCHEDULE = scaled_linear_schedule()
KINDS = ["epsilon", "v_prediction", "sample"]
TIMESTEPS = jnp.array([0, 1, 100, 500, 999])


def draw(seed: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((5, 4, 4, 4), dtype=np.float32))


def scales():
    alphas_cumprod = np.asarray(SCHEDULE.alphas_cumprod, np.float64)[np.asarray(TIMESTEPS)].reshape(5, 1, 1, 1)
    return np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_gives_back_latents_and_noise(kind):
    latents, noise = draw(0), draw(1)
    noisy_latents = add_noise(SCHEDULE, latents, noise, TIMESTEPS)
    target = training_target(kind, latents, noise, SCHEDULE, TIMESTEPS)
    signal_scale, noise_scale = scales()
    # Recovering x0 from eps divides float32's rounding by alpha, recovering eps from x0 divides it by sigma.
    latents_error = np.abs(predict_x0(kind, target, noisy_latents, SCHEDULE, TIMESTEPS) - latents)
    noise_error = np.abs(predict_noise(kind, target, noisy_latents, SCHEDULE, TIMESTEPS) - noise)
    assert np.all(latents_error <= 2e-6 / (signal_scale if kind == "epsilon" else 1.0))
    assert np.all(noise_error <= 2e-6 / (noise_scale if kind == "sample" else 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_any_output_splits_the_noisy_latents_into_its_x0_and_noise(kind):
    """sqrt(abar) x0 + sqrt(1 - abar) eps = x_t holds whatever the network says."""
    model_output, noisy_latents = draw(2), draw(3)
    x0 = predict_x0(kind, model_output, noisy_latents, SCHEDULE, TIMESTEPS)
    noise = predict_noise(kind, model_output, noisy_latents, SCHEDULE, TIMESTEPS)
    np.testing.assert_allclose(add_noise(SCHEDULE, x0, noise, TIMESTEPS), noisy_latents, atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_is_the_target_of_what_it_predicts(kind):
    """training_target inverts (predict_x0, predict_noise)."""
    model_output, noisy_latents = draw(4), draw(5)
    x0 = predict_x0(kind, model_output, noisy_latents, SCHEDULE, TIMESTEPS)
    noise = predict_noise(kind, model_output, noisy_latents, SCHEDULE, TIMESTEPS)
    target = training_target(kind, x0, noise, SCHEDULE, TIMESTEPS)
    np.testing.assert_allclose(target, model_output, atol=1e-5)


def test_targets_by_their_definitions():
    latents, noise = draw(6), draw(7)
    signal_scale, noise_scale = scales()
    np.testing.assert_array_equal(training_target("epsilon", latents, noise, SCHEDULE, TIMESTEPS), noise)
    np.testing.assert_array_equal(training_target("sample", latents, noise, SCHEDULE, TIMESTEPS), latents)
    expected = signal_scale * np.asarray(noise, np.float64) - noise_scale * np.asarray(latents, np.float64)
    np.testing.assert_allclose(
        training_target("v_prediction", latents, noise, SCHEDULE, TIMESTEPS), expected, atol=2e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_outputs_are_widened_before_the_algebra(kind):
    model_output = draw(8).astype(jnp.bfloat16)
    noisy_latents = draw(9)
    for predict in (predict_x0, predict_noise):
        actual = predict(kind, model_output, noisy_latents, SCHEDULE, TIMESTEPS)
        assert actual.dtype == jnp.float32
        expected = predict(kind, model_output.astype(jnp.float32), noisy_latents, SCHEDULE, TIMESTEPS)
        np.testing.assert_array_equal(actual, expected)


def test_a_scalar_timestep_serves_the_whole_batch():
    model_output, noisy_latents = draw(10), draw(11)
    one = predict_x0("v_prediction", model_output, noisy_latents, SCHEDULE, 500)
    each = predict_x0("v_prediction", model_output, noisy_latents, SCHEDULE, jnp.full((5,), 500))
    np.testing.assert_array_equal(one, each)


@pytest.mark.parametrize("function", [training_target, predict_x0, predict_noise])
def test_unknown_kinds_are_refused(function):
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample"):
        # unwrap: past the run-time type check, which would speak first in tests.
        inspect.unwrap(function)("score", draw(0), draw(1), SCHEDULE, TIMESTEPS)


@pytest.mark.parametrize("gamma", [0.3, 5.0])
def test_min_snr_weight_is_the_same_for_every_parameterization(gamma: float) -> None:
    """Hang et al. 2023: whatever is predicted, the squared error of x0 weighs min(SNR, gamma)."""
    timesteps = jnp.array([0, 50, 400, 999])
    abar = np.asarray(SCHEDULE.alphas_cumprod, np.float64)[np.asarray(timesteps)]
    ratio = abar / (1 - abar)
    random = np.random.default_rng(0)
    latents, noise = (jnp.asarray(random.normal(size=(4, 2, 2, 3)), jnp.float32) for _ in range(2))
    noisy = add_noise(SCHEDULE, latents, noise, timesteps)
    for kind in KINDS:
        target = training_target(kind, latents, noise, SCHEDULE, timesteps)
        output = target + 0.1 * jnp.asarray(random.normal(size=target.shape), jnp.float32)
        x0_hat = predict_x0(kind, output, noisy, SCHEDULE, timesteps)
        of_x0 = np.square(x0_hat - latents).sum((1, 2, 3))
        of_output = np.square(output - target).sum((1, 2, 3))
        weight = min_snr_weight(kind, gamma, SCHEDULE, timesteps)
        np.testing.assert_allclose(weight * of_output, np.minimum(ratio, gamma) * of_x0, rtol=2e-3)
