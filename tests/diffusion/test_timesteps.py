import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.diffusion import (
    per_sample_keys,
    previous_timesteps,
    sample_timesteps,
    sampling_timesteps,
    scaled_linear_schedule,
)

SCHEDULE = scaled_linear_schedule()


def test_sampling_timesteps_by_hand():
    assert sampling_timesteps(SCHEDULE, 4, "leading", 1).tolist() == [751, 501, 251, 1]
    assert sampling_timesteps(SCHEDULE, 4, "leading", 0).tolist() == [750, 500, 250, 0]
    assert sampling_timesteps(SCHEDULE, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert sampling_timesteps(SCHEDULE, 4, "linspace").tolist() == [999, 666, 333, 0]


def test_default_is_leading_with_offset_one():
    timesteps = sampling_timesteps(SCHEDULE, 40)
    assert (timesteps[0], timesteps[-1], len(timesteps), timesteps.dtype) == (976, 1, 40, np.int32)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_any_number_of_steps_descends_within_range(spacing):
    for num_inference_steps in range(1, 1000):
        timesteps = sampling_timesteps(SCHEDULE, num_inference_steps, spacing)
        assert timesteps.shape == (num_inference_steps,)
        assert np.all(np.diff(timesteps) < 0) and timesteps[-1] >= 0 and timesteps[0] < 1000


def test_previous_timesteps_are_the_next_of_the_list_then_the_end():
    assert previous_timesteps(sampling_timesteps(SCHEDULE, 4, "linspace")).tolist() == [666, 333, 0, -1]


def test_wrong_sampling_timesteps_are_refused():
    # unwrap: past the run-time type check, which would speak first in tests.
    with pytest.raises(ValueError, match="leading, trailing, linspace"):
        inspect.unwrap(sampling_timesteps)(SCHEDULE, 10, "karras")
    for num_inference_steps in (0, 1001):
        with pytest.raises(ValueError, match="num_inference_steps"):
            sampling_timesteps(SCHEDULE, num_inference_steps)
    # 999 + 1 is no timestep; an array lookup in JAX would silently take the last one.
    with pytest.raises(ValueError, match="steps_offset"):
        sampling_timesteps(SCHEDULE, 1000, "leading", steps_offset=1)
    with pytest.raises(ValueError, match="steps_offset"):
        sampling_timesteps(SCHEDULE, 10, "leading", steps_offset=-1)


@pytest.mark.parametrize("stratified", [True, False])
def test_timesteps_belong_to_the_sample_not_to_its_place(stratified):
    key = jax.random.key(0)
    index = jnp.arange(64, 80, dtype=jnp.uint32)
    timesteps = sample_timesteps(key, index, 1000, stratified)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(sample_timesteps(key, index[order], 1000, stratified), timesteps[order])
    assert timesteps.dtype == jnp.int32
    assert not np.array_equal(sample_timesteps(jax.random.key(1), index, 1000, stratified), timesteps)


def test_unstratified_timesteps_do_not_depend_on_the_batch():
    key = jax.random.key(0)
    whole = sample_timesteps(key, jnp.arange(16, dtype=jnp.uint32), 1000, stratified=False)
    part = sample_timesteps(key, jnp.arange(5, 8, dtype=jnp.uint32), 1000, stratified=False)
    np.testing.assert_array_equal(part, whole[5:8])


def test_an_integer_means_the_first_indices_and_raw_keys_are_keys():
    expected = sample_timesteps(jax.random.key(3), jnp.arange(8, dtype=jnp.uint32), 1000)
    np.testing.assert_array_equal(sample_timesteps(jax.random.key(3), 8, 1000), expected)
    np.testing.assert_array_equal(sample_timesteps(jax.random.PRNGKey(3), 8, 1000), expected)


def test_timesteps_share_no_key_with_the_samples_own():
    """A caller draws noise from `split(fold_in(key, index))`; a timestep drawn from one of those would go with it."""
    key = jax.random.key(0)
    timesteps = np.asarray(sample_timesteps(key, 8, 10**6, stratified=False))
    own_keys = jax.vmap(lambda sample_key: jax.random.split(sample_key, 8))(per_sample_keys(key, 8)).reshape(-1)
    from_own_keys = jnp.floor(10**6 * jax.vmap(jax.random.uniform)(own_keys)).astype(jnp.int32)
    assert not np.isin(timesteps, np.asarray(from_own_keys)).any()


def test_stratified_batches_have_one_sample_in_each_stratum():
    for seed in range(5):
        # Late in the global order; a multiple of 20, so that an unshuffled batch would come out sorted.
        index = jnp.arange(20, dtype=jnp.uint32) + jnp.uint32(20 * (2**27 + seed))
        timesteps = np.asarray(sample_timesteps(jax.random.key(seed), index, 1000, stratified=True))
        assert np.sort(timesteps // 50).tolist() == list(range(20))
        assert timesteps.tolist() != sorted(timesteps.tolist())


@pytest.mark.parametrize("stratified", [True, False])
def test_each_sample_is_uniform(stratified):
    """Over many keys the first sample's timesteps fill ten bins evenly (chi-squared, 9 degrees, p = 0.001)."""
    draw = jax.jit(jax.vmap(lambda key: sample_timesteps(key, 4, 100, stratified)[0]))
    timesteps = np.asarray(draw(jax.random.split(jax.random.key(7), 5000)))
    assert timesteps.min() == 0 and timesteps.max() == 99
    counts = np.bincount(timesteps // 10, minlength=10)
    assert np.sum((counts - 500) ** 2 / 500) < 27.9


@pytest.mark.parametrize("stratified", [True, False])
def test_a_shift_makes_noisy_timesteps_denser(stratified):
    """t / T = s w / (1 + (s - 1) w) is undone by w = (t / T) / (s - (s - 1) t / T), which is uniform again."""
    draw = jax.jit(jax.vmap(lambda key: sample_timesteps(key, 4, 10**5, stratified, shift=3.0)[0]))
    share = (np.asarray(draw(jax.random.split(jax.random.key(8), 5000))) + 0.5) / 10**5
    assert np.median(share) == pytest.approx(0.75, abs=0.01)
    counts = np.bincount((10 * share / (3 - 2 * share)).astype(int), minlength=10)
    assert np.sum((counts - 500) ** 2 / 500) < 27.9


def test_the_last_stratum_never_rounds_up_to_num_train_timesteps(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(1 - 2**-24))
    timesteps = sample_timesteps(jax.random.key(0), 8, 1000, stratified=True)
    assert timesteps.max() == 999


@pytest.mark.parametrize("spread", [2, 4, 16])
def test_spread_strata(spread: int) -> None:
    """Every run of neighbours has one of each part of [0, T): its least noisy are the batch's."""
    seen = []
    for step in range(20):
        key = jax.random.fold_in(jax.random.key(0), step)
        timesteps = np.asarray(sample_timesteps(key, np.arange(32, 48, dtype=np.uint32), 1600, spread=spread))
        # One in each of the sixteen strata, as without.
        assert sorted(timesteps // 100) == list(range(16))
        parts = timesteps.reshape(-1, spread) // (1600 // spread)
        assert all(sorted(run) == list(range(spread)) for run in parts)
        seen.append(timesteps // 100)
    # Every sample meets every noise level.
    assert np.ptp(np.mean(seen, axis=0)) < 8
    assert len({tuple(row) for row in seen}) == 20
