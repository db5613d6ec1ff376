import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import (
    classifier_free_guidance,
    guided_timesteps,
    predict_noise,
    predict_x0,
    rescale_guidance,
    scaled_linear_schedule,
    training_target,
)


def draw(seed: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((3, 4, 4, 4), dtype=np.float32))


def test_scales_zero_one_and_beyond():
    conditional, unconditional = draw(0), draw(1)
    np.testing.assert_array_equal(classifier_free_guidance(conditional, unconditional, 0.0), unconditional)
    np.testing.assert_allclose(classifier_free_guidance(conditional, unconditional, 1.0), conditional, atol=1e-6)
    expected = 5.0 * np.asarray(conditional) - 4.0 * np.asarray(unconditional)
    np.testing.assert_allclose(classifier_free_guidance(conditional, unconditional, 5.0), expected, atol=5e-6)


def test_one_scale_for_each_sample():
    conditional, unconditional = draw(0), draw(1)
    scales = [1.0, 2.5, 7.0]
    together = classifier_free_guidance(conditional, unconditional, jnp.array(scales))
    for i, scale in enumerate(scales):
        alone = classifier_free_guidance(conditional[i : i + 1], unconditional[i : i + 1], scale)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_guiding_noise_v_or_x0_is_the_same(kind):
    """Guidance commutes with the change of parameterization at a given x_t."""
    schedule, timestep = scaled_linear_schedule(), 600
    noisy_latents, conditional, unconditional = draw(0), draw(1), draw(2)

    def to_kind(noise):
        x0 = predict_x0("epsilon", noise, noisy_latents, schedule, timestep)
        return training_target(kind, x0, noise, schedule, timestep)

    guided = classifier_free_guidance(to_kind(conditional), to_kind(unconditional), 3.0)
    actual = predict_noise(kind, guided, noisy_latents, schedule, timestep)
    np.testing.assert_allclose(actual, classifier_free_guidance(conditional, unconditional, 3.0), atol=2e-5)


def test_half_precision_is_widened_before_the_difference():
    conditional, unconditional = draw(0).astype(jnp.bfloat16), draw(1).astype(jnp.bfloat16)
    actual = classifier_free_guidance(conditional, unconditional, 5.0)
    assert actual.dtype == jnp.float32
    expected = classifier_free_guidance(conditional.astype(jnp.float32), unconditional.astype(jnp.float32), 5.0)
    np.testing.assert_array_equal(actual, expected)


def test_rescaling_restores_each_samples_deviation():
    # The samples differ in size, so that a deviation over the whole batch would show.
    conditional = draw(0) * jnp.array([1.0, 3.0, 0.2]).reshape(3, 1, 1, 1)
    guided = classifier_free_guidance(conditional, draw(1), 7.0)
    full = np.asarray(rescale_guidance(guided, conditional, 1.0))
    np.testing.assert_allclose(full.std(axis=(1, 2, 3)), np.asarray(conditional).std(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(rescale_guidance(guided, conditional, 0.0), guided, rtol=1e-6)
    expected = 0.7 * full + 0.3 * np.asarray(guided)
    np.testing.assert_allclose(rescale_guidance(guided, conditional, 0.7), expected, rtol=1e-4, atol=1e-6)


def test_the_interval_is_open_below_and_closed_above():
    schedule = scaled_linear_schedule()
    timesteps = jnp.array([0, 200, 500, 800, 999])
    sigmas = [
        float(jnp.sqrt(jnp.asarray(schedule.one_minus_alphas_cumprod) / jnp.asarray(schedule.alphas_cumprod))[t])
        for t in timesteps
    ]
    np.testing.assert_allclose([sigmas[0], sigmas[-1]], [0.02917, 14.6146], rtol=1e-4)
    guided = guided_timesteps(schedule, timesteps, (sigmas[1], sigmas[3]))
    assert guided.tolist() == [False, False, True, True, False]
    assert guided_timesteps(schedule, timesteps, (0.0, float("inf"))).all()
