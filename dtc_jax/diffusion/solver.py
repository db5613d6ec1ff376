"""What the sampling loop asks of a solver."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int32, Integer, Key

from dtc_jax.diffusion.schedule import NoiseSchedule
from dtc_jax.diffusion.timesteps import TimestepSpacing


@runtime_checkable
class Solver(Protocol):
    """One step of the reverse process, as a small immutable value with pure methods.

    A solver that remembers earlier steps (a multistep method) keeps them in a carry: any pytree of arrays, fixed in
    structure and shapes, because it goes through `jax.lax.scan`.
    """

    def timesteps(
        self, schedule: NoiseSchedule, num_inference_steps: int, spacing: TimestepSpacing, steps_offset: int
    ) -> Int32[np.ndarray, " num_inference_steps"]:
        """The timesteps that it visits, descending, as a host array; most often those of `sampling_timesteps`."""
        ...

    def init_carry(self, latents: Float[Array, "b *rest"]) -> Any:
        """The carry before the first step; `()` for a solver without memory."""
        ...

    def step(
        self,
        carry: Any,
        schedule: NoiseSchedule,
        predicted_x0: Float[Array, "b *rest"],
        predicted_noise: Float[Array, "b *rest"],
        latents: Float[Array, "b *rest"],
        timestep: Integer[Array, ""],
        previous_timestep: Integer[Array, ""],
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, "b *rest"], Any]:
        """Takes `latents` at `timestep` to `previous_timestep` (negative: the end). Returns the new latents and carry.

        `keys` are fresh at every step, one for each sample, for solvers that add noise.
        """
        ...
