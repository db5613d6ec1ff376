import jax
import jax.numpy as jnp
import numpy as np

from dtc_jax.diffusion import per_sample_keys, per_sample_normal


def test_a_samples_key_is_the_key_folded_with_its_index():
    key, index = jax.random.key(0), [7, 0, 2**32 - 1]
    keys = per_sample_keys(key, jnp.array(index, dtype=jnp.uint32))
    for sample_key, sample_index in zip(keys, index, strict=True):
        expected = jax.random.fold_in(key, np.uint32(sample_index))
        np.testing.assert_array_equal(jax.random.key_data(sample_key), jax.random.key_data(expected))


def test_an_integer_counts_from_zero_and_raw_keys_are_keys():
    expected = jax.random.key_data(per_sample_keys(jax.random.key(3), jnp.arange(4, dtype=jnp.uint32)))
    np.testing.assert_array_equal(jax.random.key_data(per_sample_keys(jax.random.key(3), 4)), expected)
    np.testing.assert_array_equal(jax.random.key_data(per_sample_keys(jax.random.PRNGKey(3), 4)), expected)


def test_noise_is_standard_normal_and_each_row_its_own():
    keys = per_sample_keys(jax.random.key(1), 2)
    noise = np.asarray(per_sample_normal(keys, (50, 50, 4)))
    assert noise.shape == (2, 50, 50, 4) and noise.dtype == np.float32
    for i in range(2):
        np.testing.assert_array_equal(noise[i], jax.random.normal(keys[i], (50, 50, 4)))
        # Five standard errors of 10,000 draws.
        assert abs(noise[i].mean()) < 0.05 and abs(noise[i].std() - 1) < 0.036
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
