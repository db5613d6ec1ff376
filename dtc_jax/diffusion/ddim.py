"""Denoising diffusion implicit models (Song et al. 2021, arXiv:2010.02502)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer, Key

from dtc_jax.diffusion.randomness import per_sample_normal
from dtc_jax.diffusion.schedule import NoiseSchedule
from dtc_jax.diffusion.timesteps import TimestepSpacing, sampling_timesteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    r"""One DDIM step, from x_t to x_s with s < t (eq. 12 and 16 of the paper; its alpha is abar here):

        x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps + sigma noise
        sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)

    eta = 0 is deterministic; eta = 1 is ancestral sampling with the DDPM posterior's variance.

    Attributes:
        eta: in [0, 1].
        set_alpha_to_one: whether the last step leads to abar = 1, the clean latents, or to `alphas_cumprod[0]`, the
            least noise that the network was trained on (Stable Diffusion 1.x).
        clip_sample: clip the predicted x0 to +-clip_range (for pixels, not for latents). The predicted noise is left
            as it is, which is what diffusers does by default.
        clip_range: see `clip_sample`.
    """

    eta: float = 0.0
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_range: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], not {self.eta}")
        if self.clip_sample and self.clip_range <= 0.0:
            raise ValueError(f"clip_range must be positive, not {self.clip_range}")

    def timesteps(
        self, schedule: NoiseSchedule, num_inference_steps: int, spacing: TimestepSpacing, steps_offset: int
    ) -> Int32[np.ndarray, " num_inference_steps"]:
        """Those of `sampling_timesteps`."""
        return sampling_timesteps(schedule, num_inference_steps, spacing, steps_offset)

    def init_carry(self, latents: Float[Array, "b *rest"]) -> tuple[()]:
        """Nothing: a step depends on the step's own prediction alone."""
        return ()

    def step(
        self,
        carry: tuple[()],
        schedule: NoiseSchedule,
        predicted_x0: Float[Array, "b *rest"],
        predicted_noise: Float[Array, "b *rest"],
        latents: Float[Array, "b *rest"],
        timestep: int | Integer[Array, ""],
        previous_timestep: int | Integer[Array, ""],
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, "b *rest"], tuple[()]]:
        """Takes x_t to x_s; `previous_timestep` < 0 is the end. `keys` are used if eta > 0 only."""
        alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
        one_minus_alphas_cumprod = jnp.asarray(schedule.one_minus_alphas_cumprod)
        # Clamped to 0, the end is timestep 0.
        alpha_s = alphas_cumprod[jnp.maximum(previous_timestep, 0)]
        one_minus_alpha_s = one_minus_alphas_cumprod[jnp.maximum(previous_timestep, 0)]
        if self.set_alpha_to_one:
            is_end = jnp.asarray(previous_timestep) < 0
            alpha_s, one_minus_alpha_s = jnp.where(is_end, 1.0, alpha_s), jnp.where(is_end, 0.0, one_minus_alpha_s)
        if self.clip_sample:
            predicted_x0 = jnp.clip(predicted_x0, -self.clip_range, self.clip_range)
        if self.eta == 0.0:
            return jnp.sqrt(alpha_s) * predicted_x0 + jnp.sqrt(one_minus_alpha_s) * predicted_noise, carry
        alpha_t, one_minus_alpha_t = alphas_cumprod[timestep], one_minus_alphas_cumprod[timestep]
        # abar_s - abar_t, subtracted where the numbers are small and thus finely resolved.
        difference = jnp.where(alpha_s < 0.5, alpha_s - alpha_t, one_minus_alpha_t - one_minus_alpha_s)
        one_minus_ratio = difference / alpha_s
        # Neither root is of a negative number in exact arithmetic; rounding must not make a NaN of it.
        variance = jnp.maximum(self.eta**2 * one_minus_alpha_s / one_minus_alpha_t * one_minus_ratio, 0.0)
        direction_scale = jnp.sqrt(jnp.maximum(one_minus_alpha_s - variance, 0.0))
        noise = per_sample_normal(keys, latents.shape[1:], predicted_x0.dtype)
        mean = jnp.sqrt(alpha_s) * predicted_x0 + direction_scale * predicted_noise
        return mean + jnp.sqrt(variance) * noise, carry
