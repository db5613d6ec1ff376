"""Combining a conditional and an unconditional prediction."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from dtc_jax.diffusion.schedule import NoiseSchedule, at_least_float32, expand_per_sample


def classifier_free_guidance(
    conditional: Float[Array, "b *rest"],
    unconditional: Float[Array, "b *rest"],
    guidance_scale: float | Float[Array, ""] | Float[Array, " b"],
) -> Float[Array, "b *rest"]:
    """`unconditional + guidance_scale * (conditional - unconditional)`, in float32 or wider.

    Ho & Salimans 2022 (arXiv:2207.12598, eq. 6) with guidance_scale = 1 + w: 1 is the conditional prediction, 0 the
    unconditional one. The result is the same sample whether the predictions are noise, v or x_0, since each is
    an affine function of the others at a given x_t.

    Args:
        conditional: the network's output with the condition.
        unconditional: the network's output without it.
        guidance_scale: one number, or one for each sample; may be traced.
    """
    conditional, unconditional = at_least_float32(conditional), at_least_float32(unconditional)
    scale = expand_per_sample(jnp.asarray(guidance_scale, dtype=conditional.dtype), conditional.ndim)
    return unconditional + scale * (conditional - unconditional)


def rescale_guidance(
    guided: Float[Array, "b *rest"],
    conditional: Float[Array, "b *rest"],
    guidance_rescale: float | Float[Array, ""] | Float[Array, " b"],
) -> Float[Array, "b *rest"]:
    """Gives the guided prediction back some of the conditional one's standard deviation.

    Lin et al. 2023 (arXiv:2305.08891, eq. 15 and 16; they use 0.7):

        rescaled = guided * std(conditional) / std(guided),   std over all axes of a sample
        result   = guidance_rescale * rescaled + (1 - guidance_rescale) * guided

    Args:
        guided: the result of `classifier_free_guidance`.
        conditional: the network's output with the condition.
        guidance_rescale: in [0, 1], 0 changes nothing; may be traced.
    """
    guided, conditional = at_least_float32(guided), at_least_float32(conditional)
    axes = tuple(range(1, guided.ndim))
    weight = expand_per_sample(jnp.asarray(guidance_rescale, dtype=guided.dtype), guided.ndim)
    ratio = jnp.std(conditional, axis=axes, keepdims=True) / jnp.std(guided, axis=axes, keepdims=True)
    return guided * (weight * ratio + (1.0 - weight))


def guided_timesteps(
    schedule: NoiseSchedule, timesteps: Integer[Array, "..."], guidance_interval: tuple[float, float]
) -> Bool[Array, "..."]:
    """Which timesteps have a noise level inside the interval that guidance is limited to.

    Kynkaanniemi et al. 2024 (arXiv:2404.07724, section 3): guidance hurts at high noise, where it narrows what is
    drawn, and does little at low noise; there the scale is 1. Their noise level is that of a process that adds noise
    to unscaled data, which for ours is sigma = sqrt((1 - abar) / abar); guided is low < sigma <= high. Stable
    Diffusion's schedule runs from 0.03 to 14.6.

    Args:
        schedule: the noise schedule.
        timesteps: in [0, T).
        guidance_interval: low and high.
    """
    low, high = guidance_interval
    sigma = jnp.sqrt(jnp.asarray(schedule.one_minus_alphas_cumprod) / jnp.asarray(schedule.alphas_cumprod))[timesteps]
    return (low < sigma) & (sigma <= high)
