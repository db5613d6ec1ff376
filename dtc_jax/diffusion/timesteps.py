"""Which timesteps are visited: by a sampler, and by a training batch."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer

from dtc_jax.diffusion.randomness import KeyLike, as_typed_key, per_sample_keys
from dtc_jax.diffusion.schedule import NoiseSchedule

TimestepSpacing = Literal["leading", "trailing", "linspace"]


def sampling_timesteps(
    schedule: NoiseSchedule,
    num_inference_steps: int,
    spacing: TimestepSpacing = "leading",
    steps_offset: int = 1,
) -> Int32[np.ndarray, " num_inference_steps"]:
    """The timesteps of a sampling run, descending, as a host array (they are static in a compiled sampler).

    The three spacings are those of Lin et al. 2023 (arXiv:2305.08891, table 2), with the rounding of diffusers'
    `DDIMScheduler`; Stable Diffusion 1.x samples with `leading` and offset 1.

    Args:
        schedule: the noise schedule; only its length T is read.
        num_inference_steps: N, in [1, T].
        spacing: `leading` i * (T // N) + steps_offset; `trailing` round(T - i T / N) - 1; `linspace` N points from 0 to
            T - 1, both included.
        steps_offset: added by `leading` only.

    Raises:
        ValueError: unknown spacing, N outside [1, T], or an offset that leads outside [0, T).
    """
    num_train_timesteps = schedule.num_train_timesteps
    if spacing not in get_args(TimestepSpacing):
        raise ValueError(f"unknown timestep spacing {spacing!r}: choose one of {', '.join(get_args(TimestepSpacing))}")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"num_inference_steps must lie in [1, {num_train_timesteps}], not {num_inference_steps}")
    if spacing == "leading":
        timesteps = np.arange(num_inference_steps)[::-1] * (num_train_timesteps // num_inference_steps) + steps_offset
    elif spacing == "trailing":
        stride = num_train_timesteps / num_inference_steps
        # arange with a fractional step may return one element too many.
        timesteps = np.round(np.arange(num_train_timesteps, 0, -stride)[:num_inference_steps]).astype(np.int64) - 1
    else:
        timesteps = np.linspace(0, num_train_timesteps - 1, num_inference_steps).round()[::-1].astype(np.int64)
    if timesteps[-1] < 0 or timesteps[0] >= num_train_timesteps:
        raise ValueError(
            f"{num_inference_steps} steps with steps_offset={steps_offset} run from timestep {timesteps[0]} to "
            f"{timesteps[-1]}, outside [0, {num_train_timesteps}): change steps_offset or num_inference_steps"
        )
    return timesteps.astype(np.int32)


def previous_timesteps(timesteps: Int32[np.ndarray, " steps"]) -> Int32[np.ndarray, " steps"]:
    """The timestep that each step leads to: the next of the list, and -1 ("the end") after the last.

    diffusers' `DDIMScheduler` takes `t - T // N` instead. That is the same for `leading`, and for `trailing` where N
    divides T; for the others it walks to timesteps that are never visited, and the sample arrives with a noise level
    other than the one that the network is told.
    """
    return np.append(timesteps[1:], -1).astype(np.int32)


def sample_timesteps(
    key: KeyLike,
    index: int | Integer[Array | np.ndarray, " b"],
    num_train_timesteps: int,
    stratified: bool = True,
    shift: float = 1.0,
    spread: int = 1,
) -> Int32[Array, " b"]:
    """Timesteps for a training batch, each uniform on 0..T-1, or denser towards T.

    Stratified: [0, T) is cut into b equal strata and each sample gets one of them, which lowers the variance of the
    batch's loss without a bias (as in Kingma et al. 2021, arXiv:2107.00630, appendix I.1, with a shuffle and an offset
    for each sample):

        t_i = floor(T (pi(index_i mod b) + u_i) / b),   pi a random permutation of 0..b-1, u_i uniform on [0, 1)

    A `shift` s above 1 moves a uniform share w of T to s w / (1 + (s - 1) w), the map that Esser et al. 2024
    (arXiv:2403.03206, equation 23) give with s = sqrt(m / n): the median becomes s / (1 + s) of T.

    The numbers depend on the key and the sample's index only, not on the order of the batch: a batch of consecutive
    indices gets one sample in each stratum, in whichever order processes have put it together.

    Args:
        key: the step's key (`fold_in(run_key, step)`).
        index: the samples' places in the global order, or an integer `b` for 0..b-1. With `stratified` the array must
            be the global batch (which it is within jit).
        num_train_timesteps: T.
        stratified: False draws each timestep alone.
        shift: s, above 0.
        spread: Divisor of b. With `stratified` each run of so many consecutive indices (from a multiple of it on) gets
            one stratum of each `spread`-th of them: the least noisy of the runs are the least noisy of the batch.
    """
    # `split(key)[i]` is `fold_in(key, i)`, which is the caller's key for the noise of sample i: keep clear of it.
    permutation_key, uniform_key = jax.random.split(jax.random.fold_in(as_typed_key(key), np.uint32(2**32 - 1)))
    index = jnp.arange(index, dtype=jnp.uint32) if isinstance(index, int) else jnp.asarray(index)
    keys = per_sample_keys(uniform_key, index)
    uniform = jax.vmap(jax.random.uniform)(keys)
    if stratified:
        batch_size = index.shape[0]
        strata = _strata(permutation_key, batch_size, spread)[index % batch_size]
        uniform = (strata + uniform) / batch_size
    shifted = shift * uniform / (1 + (shift - 1) * uniform)
    # The sum, and the product with T, may round up to the end.
    return jnp.minimum(jnp.floor(num_train_timesteps * shifted).astype(jnp.int32), num_train_timesteps - 1)


def _strata(key: KeyLike, count: int, spread: int) -> Int32[Array, " count"]:
    """A random permutation of 0..count-1 in which each run of `spread` has one of each `spread`-th of the numbers."""
    if spread == 1:
        return jax.random.permutation(key, count)
    runs = count // spread
    band_key, rank_key = jax.random.split(key)
    permutations = jax.vmap(jax.random.permutation, in_axes=(0, None))
    # Which part of the numbers each member of a run gets, and the place of each run within that part.
    bands = permutations(jax.random.split(band_key, runs), spread)
    ranks = permutations(jax.random.split(rank_key, spread), runs)
    return (bands * runs + ranks[bands, jnp.arange(runs)[:, None]]).reshape(-1)
