r"""What a network predicts, and the algebra between the three choices.

With alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t) and x_t = alpha x_0 + sigma eps:

    epsilon        eps                      (Ho et al. 2020, arXiv:2006.11239)
    sample         x_0
    v_prediction   v = alpha eps - sigma x_0   (Salimans & Ho 2022, arXiv:2202.00512, appendix D)

so that x_0 = alpha x_t - sigma v and eps = sigma x_t + alpha v. All in float32 whatever the network's dtype.
"""

from typing import Literal, NoReturn, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from dtc_jax.diffusion.schedule import NoiseSchedule, at_least_float32, signal_and_noise_scale, snr

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def training_target(
    kind: PredictionType,
    latents: Float[Array, "b *rest"],
    noise: Float[Array, "b *rest"],
    schedule: NoiseSchedule,
    timesteps: int | Integer[Array, " b"] | Integer[Array, ""],
) -> Float[Array, "b *rest"]:
    """What the network should return for `add_noise(schedule, latents, noise, timesteps)`.

    Raises:
        ValueError: unknown kind (here and below).
    """
    latents, noise = at_least_float32(latents), at_least_float32(noise)
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "v_prediction":
        signal_scale, noise_scale = signal_and_noise_scale(schedule, timesteps, latents.ndim)
        return signal_scale * noise - noise_scale * latents
    _raise_unknown(kind)


def predict_x0(
    kind: PredictionType,
    model_output: Float[Array, "b *rest"],
    noisy_latents: Float[Array, "b *rest"],
    schedule: NoiseSchedule,
    timesteps: int | Integer[Array, " b"] | Integer[Array, ""],
) -> Float[Array, "b *rest"]:
    """The clean latents that the network's output stands for.

    For `epsilon` this divides by sqrt(abar_t), which multiplies an error of the output by up to 15 at the last
    timesteps of Stable Diffusion's schedule.
    """
    model_output, noisy_latents = at_least_float32(model_output), at_least_float32(noisy_latents)
    if kind == "sample":
        return model_output
    signal_scale, noise_scale = signal_and_noise_scale(schedule, timesteps, noisy_latents.ndim)
    if kind == "epsilon":
        return (noisy_latents - noise_scale * model_output) / signal_scale
    if kind == "v_prediction":
        return signal_scale * noisy_latents - noise_scale * model_output
    _raise_unknown(kind)


def predict_noise(
    kind: PredictionType,
    model_output: Float[Array, "b *rest"],
    noisy_latents: Float[Array, "b *rest"],
    schedule: NoiseSchedule,
    timesteps: int | Integer[Array, " b"] | Integer[Array, ""],
) -> Float[Array, "b *rest"]:
    """The noise that the network's output stands for (for `sample` a division by sqrt(1 - abar_t))."""
    model_output, noisy_latents = at_least_float32(model_output), at_least_float32(noisy_latents)
    if kind == "epsilon":
        return model_output
    signal_scale, noise_scale = signal_and_noise_scale(schedule, timesteps, noisy_latents.ndim)
    if kind == "sample":
        return (noisy_latents - signal_scale * model_output) / noise_scale
    if kind == "v_prediction":
        return noise_scale * noisy_latents + signal_scale * model_output
    _raise_unknown(kind)


def min_snr_weight(
    kind: PredictionType, gamma: float, schedule: NoiseSchedule, timesteps: Integer[Array, " b"]
) -> Float[Array, " b"]:
    """Weight of the squared error of what the network predicts, so that x0's counts min(SNR, gamma).

    Hang et al. 2023 (arXiv:2303.09556), section 3.4: min(SNR, gamma) for `sample`, over SNR for `epsilon`, over SNR + 1
    for `v_prediction`; SNR = abar_t / (1 - abar_t).
    """
    ratio = snr(schedule, timesteps)
    limited = jnp.minimum(ratio, gamma)
    if kind == "sample":
        return limited
    if kind == "epsilon":
        return limited / ratio
    if kind == "v_prediction":
        return limited / (ratio + 1)
    _raise_unknown(kind)


def _raise_unknown(kind: str) -> NoReturn:
    raise ValueError(f"unknown prediction type {kind!r}: choose one of {', '.join(get_args(PredictionType))}")
