"""The model with its conditions bound, as the sampling loop calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dtc_jax.models.diffuse_to_choose import DiffuseToChoose, Images, Latents, Params, Tokens
from dtc_jax.models.fusion import Modulation

DenoiseFunction = Callable[[Latents, Num[Array, ""], Any], tuple[Latents, Latents | None]]


def denoiser(
    model: DiffuseToChoose,
    params: Params,
    tokens: Tokens,
    mask_latent: Float[Array, "b h w 1"],
    masked_latents: Latents,
    hint: Images | None,
    *,
    guidance: bool = True,
    unconditional: Literal["tokens", "both"] = "tokens",
) -> DenoiseFunction:
    """The network with all conditions bound, as the sampling loop wants it.

    What does not change from step to step is computed here, once: the adapter, and with `hint.time = fixed` the
    whole hint path.

    Args:
        model: Sizes and type of the arithmetic.
        params: All trainable networks.
        tokens: From `encode_reference`.
        mask_latent: As in `predict`.
        masked_latents: As in `predict`.
        hint: In [0, 1]; None drops it (as does a model without a hint path).
        guidance: Whether to predict the unconditional branch too, in the same pass over a doubled batch.
        unconditional: What that branch lacks: the tokens (the hint encoder sees null tokens too), or both tokens
            and hint (the hint encoder then runs on half the batch).

    Returns:
        `(latents, timestep, _) -> (conditional, unconditional or None)`; `timestep` is a scalar.
    """
    batch = tokens.shape[0]
    branches = 2 if guidance else 1
    hinted = 2 if guidance and unconditional == "tokens" else 1
    all_tokens = jnp.concatenate([tokens, model.null_tokens(params, tokens)]) if guidance else tokens
    inputs = None
    if model.has_hint and hint is not None:
        inputs = _repeat(model.hint_inputs(params, hint, masked_latents), hinted)
    all_masks, all_masked = _repeat(mask_latent, branches), _repeat(masked_latents, branches)

    def modulations_at(timestep: Num[Array, ""]) -> list[Modulation] | None:
        if inputs is None:
            return None
        times = jnp.broadcast_to(timestep, (hinted * batch,))
        features = model.encode_hint(params, inputs, times, all_tokens[: hinted * batch])
        modulations = model.modulations(params, features) or []
        return [(_pad(gamma, branches * batch), _pad(beta, branches * batch)) for gamma, beta in modulations]

    constant = modulations_at(jnp.zeros((), jnp.int32)) if model.config.hint.time == "fixed" else None

    def denoise(latents: Latents, timestep: Num[Array, ""], _: Any = None) -> tuple[Latents, Latents | None]:
        modulations = modulations_at(timestep) if constant is None else constant
        times = jnp.broadcast_to(timestep, (branches * batch,))
        output = model.predict(
            params, _repeat(latents, branches), all_masks, all_masked, times, all_tokens, modulations
        )
        return (output[:batch], output[batch:]) if guidance else (output, None)

    return denoise


def _repeat(x: Float[Array, "b ..."], times: int) -> Float[Array, "b2 ..."]:
    """The whole batch, several times."""
    return x if times == 1 else jnp.concatenate([x] * times)


def _pad(x: Float[Array, "b ..."], batch: int) -> Float[Array, "b2 ..."]:
    """Zeros appended up to this batch size: the identity as a modulation."""
    return x if x.shape[0] == batch else jnp.concatenate([x, jnp.zeros((batch - x.shape[0], *x.shape[1:]), x.dtype)])
