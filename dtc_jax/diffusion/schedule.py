r"""The forward process of a variance-preserving diffusion.

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I),   abar_t = prod_{s <= t} (1 - beta_s),   t = 0..T-1

Sources: Ho et al. 2020 (DDPM, arXiv:2006.11239, eq. 4), whose t = 1..T is 0..T-1 here as in published code; the
scaled-linear betas are those of latent diffusion (Rombach et al. 2022, `make_beta_schedule` in its code).
"""

from typing import Literal, get_args

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

ScheduleKind = Literal["scaled_linear", "linear", "cosine"]


@flax.struct.dataclass
class NoiseSchedule:
    """The noise schedule as a value.

    Make it with the functions below: they leave host (numpy) arrays, so that making a schedule touches no device;
    within jit the arrays become constants.

    Attributes:
        alphas_cumprod: abar_t, float32, decreasing in (0, 1).
        one_minus_alphas_cumprod: 1 - abar_t, float32, rounded from float64 on its own: subtracting in float32 would
            cost four digits at the first timesteps.
    """

    alphas_cumprod: Float[Array | np.ndarray, " T"]
    one_minus_alphas_cumprod: Float[Array | np.ndarray, " T"]

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of steps of the forward process."""
        return self.alphas_cumprod.shape[0]


def scaled_linear_schedule(
    num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> NoiseSchedule:
    """Betas linear in their square root; the defaults are those of Stable Diffusion 1.x."""
    return make_schedule("scaled_linear", num_train_timesteps, beta_start, beta_end)


def make_schedule(
    kind: ScheduleKind = "scaled_linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
) -> NoiseSchedule:
    """Makes a schedule; the products are taken in float64 and rounded to float32 once.

    Args:
        kind: `scaled_linear` (linear in sqrt(beta)), `linear` (DDPM) or `cosine` (Nichol & Dhariwal 2021,
            arXiv:2102.09672, eq. 17, offset 0.008, betas capped at 0.999; the two beta arguments are not used).
        num_train_timesteps: T.
        beta_start: first beta.
        beta_end: last beta.

    Raises:
        ValueError: unknown kind, T < 1, or not 0 < beta_start <= beta_end < 1.
    """
    if kind not in get_args(ScheduleKind):
        raise ValueError(f"unknown schedule kind {kind!r}: choose one of {', '.join(get_args(ScheduleKind))}")
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}")
    if kind == "cosine":
        betas = _cosine_betas(num_train_timesteps)
    else:
        if not 0.0 < beta_start <= beta_end < 1.0:
            raise ValueError(f"need 0 < beta_start <= beta_end < 1, not beta_start={beta_start}, beta_end={beta_end}")
        if kind == "scaled_linear":
            betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=np.float64) ** 2
        else:
            betas = np.linspace(beta_start, beta_end, num_train_timesteps, dtype=np.float64)
    return schedule_from_betas(betas)


def schedule_from_betas(betas: Float[np.ndarray, " T"]) -> NoiseSchedule:
    """A schedule of any betas, given as a host array (float64 keeps the products exact).

    Raises:
        ValueError: not one-dimensional, empty, or a beta outside (0, 1).
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0.0) & (betas < 1.0)):
        raise ValueError("betas must be a non-empty vector of numbers in (0, 1)")
    alphas_cumprod = np.cumprod(1.0 - betas)
    return NoiseSchedule(
        alphas_cumprod=alphas_cumprod.astype(np.float32),
        one_minus_alphas_cumprod=(1.0 - alphas_cumprod).astype(np.float32),
    )


def _cosine_betas(num_train_timesteps: int, max_beta: float = 0.999) -> Float[np.ndarray, " T"]:
    times = np.arange(num_train_timesteps + 1, dtype=np.float64) / num_train_timesteps
    alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def at_least_float32(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """The array in float32, or as it is where it is wider: schedule arithmetic in bfloat16 loses the small steps."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def expand_per_sample(values: Array, ndim: int) -> Array:
    """Gives `[b]` values trailing unit axes up to `ndim`; a scalar stays a scalar, which broadcasts anyway."""
    values = jnp.asarray(values)
    return values if values.ndim == 0 else values.reshape(values.shape + (1,) * (ndim - values.ndim))


def signal_and_noise_scale(
    schedule: NoiseSchedule, timesteps: int | Integer[Array, " b"] | Integer[Array, ""], ndim: int = 4
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`(sqrt(abar_t), sqrt(1 - abar_t))`, ready to multiply a batch.

    Args:
        schedule: the noise schedule.
        timesteps: in [0, T), one for each sample or one for all.
        ndim: rank of the arrays to be multiplied (4: `[b, h, w, c]`).

    Returns:
        Two float32 arrays, `[b, 1, ..., 1]` of rank `ndim`, or scalars for a scalar timestep.
    """
    signal_scale = jnp.sqrt(jnp.asarray(schedule.alphas_cumprod)[jnp.asarray(timesteps)])
    noise_scale = jnp.sqrt(jnp.asarray(schedule.one_minus_alphas_cumprod)[jnp.asarray(timesteps)])
    return expand_per_sample(signal_scale, ndim), expand_per_sample(noise_scale, ndim)


def add_noise(
    schedule: NoiseSchedule,
    latents: Float[Array, "b *rest"],
    noise: Float[Array, "b *rest"],
    timesteps: int | Integer[Array, " b"] | Integer[Array, ""],
) -> Float[Array, "b *rest"]:
    """A draw of q(x_t | x_0): `sqrt(abar_t) latents + sqrt(1 - abar_t) noise` (DDPM eq. 4), in float32 or wider."""
    latents, noise = at_least_float32(latents), at_least_float32(noise)
    signal_scale, noise_scale = signal_and_noise_scale(schedule, timesteps, latents.ndim)
    return signal_scale * latents + noise_scale * noise


def snr(schedule: NoiseSchedule, timesteps: int | Integer[Array, "..."]) -> Float[Array, "..."]:
    """Signal-to-noise ratio `abar_t / (1 - abar_t)`, float32, in the timesteps' shape."""
    ratio = jnp.asarray(schedule.alphas_cumprod) / jnp.asarray(schedule.one_minus_alphas_cumprod)
    return ratio[jnp.asarray(timesteps)]
