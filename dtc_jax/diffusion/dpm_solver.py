"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer, Key

from dtc_jax.diffusion.schedule import NoiseSchedule
from dtc_jax.diffusion.timesteps import TimestepSpacing, sampling_timesteps

_Carry = tuple[Float[Array, "b *rest"], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep:
    r"""DPM-Solver++(2M): second order with one pass of the network a step (algorithm 2 of the paper).

    In lambda = log(alpha / sigma), with alpha = sqrt(abar) and sigma = sqrt(1 - abar), the probability-flow ODE from
    timestep t to s has the exact solution (eq. 8 of the paper)

        x_s = sigma_s / sigma_t x_t + sigma_s int_{lambda_t}^{lambda_s} exp(lambda) x0(lambda) dlambda

    The step takes x0(lambda) as constant, the predictions at t and at the step before, r, extrapolated to the middle:

        h = lambda_s - lambda_t,   D = x0_t + h / (2 (lambda_t - lambda_r)) (x0_t - x0_r)
        x_s = sigma_s / sigma_t x_t + alpha_s (1 - exp(-h)) D

    The first step has no step before it and takes D = x0_t, which is DDIM's. The last one leads to the clean latents,
    where lambda is infinite, and is of first order, too: x_s = x0_t. All this is what diffusers'
    `DPMSolverMultistepScheduler` does with `algorithm_type="dpmsolver++"`, `solver_order=2`, `solver_type="midpoint"`
    and `final_sigmas_type="zero"`.
    """

    def timesteps(
        self, schedule: NoiseSchedule, num_inference_steps: int, spacing: TimestepSpacing, steps_offset: int
    ) -> Int32[np.ndarray, " num_inference_steps"]:
        """As diffusers has them: for `leading` and `linspace` those of one step more, without the last.

        The clean latents are that last step's end. `trailing` has its end there already.

        Raises:
            ValueError: as in `sampling_timesteps`; num_inference_steps must lie in [1, T - 1].
        """
        most = schedule.num_train_timesteps - 1
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must lie in [1, {most}], not {num_inference_steps}")
        if spacing == "trailing":
            return sampling_timesteps(schedule, num_inference_steps, spacing, steps_offset)
        return sampling_timesteps(schedule, num_inference_steps + 1, spacing, steps_offset)[:-1]

    def init_carry(self, latents: Float[Array, "b *rest"]) -> _Carry:
        """The x0 predicted at the step before, and its lambda.

        Before the first step that is infinitely far away: h / infinity = 0 leaves it out.
        """
        return jnp.zeros_like(latents), jnp.asarray(-jnp.inf, latents.dtype)

    def step(
        self,
        carry: _Carry,
        schedule: NoiseSchedule,
        predicted_x0: Float[Array, "b *rest"],
        predicted_noise: Float[Array, "b *rest"],
        latents: Float[Array, "b *rest"],
        timestep: int | Integer[Array, ""],
        previous_timestep: int | Integer[Array, ""],
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, "b *rest"], _Carry]:
        """Takes x_t to x_s; `previous_timestep` < 0 is the end. Neither `predicted_noise` nor `keys` are used."""
        last_x0, last_log_snr = carry
        alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
        one_minus_alphas_cumprod = jnp.asarray(schedule.one_minus_alphas_cumprod)
        log_snr = (jnp.log(alphas_cumprod) - jnp.log(one_minus_alphas_cumprod)) / 2
        # Clamped to 0, the end is timestep 0, where all is finite; its result is not used.
        s = jnp.maximum(previous_timestep, 0)
        log_snr_t = log_snr[timestep]
        h = log_snr[s] - log_snr_t
        extrapolated = predicted_x0 + h / (2 * (log_snr_t - last_log_snr)) * (predicted_x0 - last_x0)
        noise_ratio = jnp.sqrt(one_minus_alphas_cumprod[s] / one_minus_alphas_cumprod[timestep])
        result = noise_ratio * latents - jnp.sqrt(alphas_cumprod[s]) * jnp.expm1(-h) * extrapolated
        is_end = jnp.asarray(previous_timestep) < 0
        return jnp.where(is_end, predicted_x0, result), (predicted_x0, log_snr_t)
