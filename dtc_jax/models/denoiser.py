"""The model with its conditions bound, as the sampling loop calls it, and what can be computed before the loop.

A request has cases (a scene, a mask and a reference each), images of each case, and branches of guidance of each image:
a batch's rows are nested in this order, and what is the same for all images of a case, or for both branches, is
computed for one row. Exactly, not nearly:

- The hint encoder never sees the noisy latents: its modulations are of a case and a timestep, for all images of the
  case, and of any number of steps in one pass.
- Keys and values of the tokens are the same at every step and for all images of a case.
- The unconditional branch's tokens are one vector at every position: attending to them gives its value, whatever the
  queries, so that its cross-attentions are one constant each. (An empty prompt's tokens differ: that branch then
  attends, to keys and values that are computed once.)
- Up to the first cross-attention the branches do not differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dtc_jax.models.diffuse_to_choose import DiffuseToChoose, Images, Latents, Params, Tokens
from dtc_jax.models.fusion import Modulation
from dtc_jax.models.layers import repeat_rows
from dtc_jax.models.transformer import Context

DenoiseFunction = Callable[[Latents, Num[Array, ""], Any], tuple[Latents, Latents | None]]


class StepInput(NamedTuple):
    """What a step needs that does not depend on the latents; with a leading axis, of several steps."""

    temb: Float[Array, "*steps 1 t"]
    """The U-Net's time embedding."""
    modulations: list[tuple[Array, Array]] | None
    """What the fusion makes of the hint, [*steps, rows, ...] for every skip and the middle. None: it is the same at
    every step, or there is no hint."""


class Conditions(NamedTuple):
    """What a request's conditions are to the networks at every step: arrays alone, made by `bind_conditions`."""

    mask_latent: Float[Array, "images h w 1"]
    masked_latents: Float[Array, "images h w c"]
    contexts: tuple[tuple[Context, ...], ...]
    """The U-Net's cross-attentions; with unconditional rows if there is guidance."""
    hint: tuple[Latents, Tokens, Float[Array, "1 1 d"] | None] | None
    """The hint encoder's input and tokens, of each case, and the null vector for unconditional rows if these have a
    hint, too; None without a hint."""
    modulations: list[Modulation] | None
    """If they are the same at every step."""


@dataclass(frozen=True)
class Denoiser:
    """The network with all conditions bound: a `DenoiseFunction` of the sampling loop.

    Attributes:
        model: Sizes and type of the arithmetic.
        params: All trainable networks.
        conditions: From `bind_conditions`.
    """

    model: DiffuseToChoose
    params: Params
    conditions: Conditions

    @property
    def guidance(self) -> bool:
        """Whether there are two branches."""
        return any(context.null is not None for block in self.conditions.contexts for context in block)

    def step_inputs(self, timesteps: Num[Array, " steps"]) -> StepInput:
        """Everything that these steps need but their latents, the hint in one pass for all of them."""
        model = self.model
        temb = model.embed_time(self.params, timesteps)
        moving = self.conditions.hint is not None and self.conditions.modulations is None
        return StepInput(temb[:, None], self.modulations(timesteps) if moving else None)

    def modulations(self, timesteps: Num[Array, " steps"]) -> list[tuple[Array, Array]]:
        """What the fusion makes of the hint, arrays [steps, rows, ...], for every skip and the middle.

        There is a row for each case and, as far as they differ, branch.

        Raises:
            ValueError: there is no hint.
        """
        if self.conditions.hint is None:
            raise ValueError("this model has no hint, or it was dropped: there are no modulations")
        model, params, (inputs, tokens, null) = self.model, self.params, self.conditions.hint
        cases, steps = inputs.shape[0], timesteps.shape[0]
        # Steps are to the hint encoder what images are to the U-Net.
        if null is not None:
            null = jnp.broadcast_to(null, (cases * steps, *null.shape[1:]))
        contexts = model.contexts(params, tokens, null, "hint_encoder")
        times = jnp.tile(timesteps, cases)
        features = model.encode_hint(params, repeat_rows(inputs, cases * steps), times, contexts)

        def by_step(x: Float[Array, "rows h w c"]) -> Float[Array, "steps rows2 h w c"]:
            x = x.reshape(cases, steps, -1, *x.shape[1:]).swapaxes(0, 1)
            return x.reshape(steps, -1, *x.shape[3:])

        return jax.tree.map(by_step, model.modulations(params, features) or [])

    def __call__(
        self, latents: Latents, timestep: Num[Array, ""], step_input: StepInput | None = None
    ) -> tuple[Latents, Latents | None]:
        """The prediction at one step, both branches in one pass.

        Args:
            latents: Noisy latents of each image.
            timestep: Of all of them.
            step_input: This step's part of `step_inputs`; None computes it here.

        Returns:
            The conditional prediction, and the unconditional one or None.
        """
        output = self._predict(latents, timestep, step_input, self.conditions.contexts, self._all_rows)
        if not self.guidance:
            return output, None
        branches = output.reshape(-1, 2, *output.shape[1:])
        return branches[:, 0], branches[:, 1]

    def conditional(
        self, latents: Latents, timestep: Num[Array, ""], step_input: StepInput | None = None
    ) -> tuple[Latents, None]:
        """As a call, without the unconditional branch: for steps that are not guided."""
        contexts = tuple(tuple(context._replace(null=None) for context in block) for block in self.conditions.contexts)
        return self._predict(latents, timestep, step_input, contexts, self._conditional_rows), None

    def _predict(
        self,
        latents: Latents,
        timestep: Num[Array, ""],
        step_input: StepInput | None,
        contexts: tuple[tuple[Context, ...], ...],
        rows: Callable[[Array], Array],
    ) -> Float[Array, "rows h w c"]:
        if step_input is None:
            step_input = jax.tree.map(lambda x: x[0], self.step_inputs(jnp.asarray(timestep)[None]))
        modulations = self.conditions.modulations if step_input.modulations is None else step_input.modulations
        if modulations is not None:
            modulations = jax.tree.map(rows, modulations)
        times = jnp.broadcast_to(timestep, latents.shape[:1])
        return self.model.predict(
            self.params, latents, *self.conditions[:2], times, contexts, modulations, step_input.temb
        )

    def _all_rows(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows2 h w c"]:
        """A modulation, with the identity for unconditional rows if these have no hint."""
        assert self.conditions.hint is not None
        inputs, _, null = self.conditions.hint
        if self.guidance and null is None:
            x = jnp.stack([x, jnp.zeros_like(x)], axis=1).reshape(-1, *x.shape[1:])
        cases, images = inputs.shape[0], self.conditions.mask_latent.shape[0]
        if x.shape[0] == cases:
            return x
        # Branches are inside images: between them, `repeat_rows` would come out in another order.
        x = jnp.repeat(x.reshape(cases, 1, -1, *x.shape[1:]), images // cases, axis=1)
        return x.reshape(-1, *x.shape[3:])

    def _conditional_rows(self, x: Float[Array, "rows h w c"]) -> Float[Array, "cases h w c"]:
        assert self.conditions.hint is not None
        cases = self.conditions.hint[0].shape[0]
        return x.reshape(cases, -1, *x.shape[1:])[:, 0]


def bind_conditions(
    model: DiffuseToChoose,
    params: Params,
    tokens: Tokens,
    mask_latent: Float[Array, "cases h w 1"],
    masked_latents: Float[Array, "cases h w c"],
    hint: Images | None,
    *,
    guidance: bool = True,
    unconditional: Literal["tokens", "both"] = "tokens",
    images_per_case: int = 1,
) -> Conditions:
    """What does not change from step to step: the adapter, keys and values, and of a hint of fixed time all.

    Args:
        model: Sizes and type of the arithmetic.
        params: All trainable networks.
        tokens: From `encode_reference`, of each case.
        mask_latent: As in `predict`.
        masked_latents: As in `predict`.
        hint: In [0, 1]; None drops it (as does a model without a hint path).
        guidance: Whether to predict the unconditional branch too, in the same pass over a doubled batch.
        unconditional: What that branch lacks: the tokens (the hint encoder sees null tokens too), or both tokens
            and hint (the hint encoder then runs on half the batch).
        images_per_case: Latents that a case has in a row in the batch that is denoised.
    """
    images = tokens.shape[0] * images_per_case
    null = params["null_tokens"]["embedding"].astype(tokens.dtype)
    nulls = jnp.broadcast_to(null, (images, *null.shape[1:])) if guidance else None
    inputs = None
    if model.has_hint and hint is not None:
        hint_null = null if guidance and unconditional == "tokens" else None
        inputs = (model.hint_inputs(params, hint, masked_latents), tokens, hint_null)
    conditions = Conditions(
        mask_latent=repeat_rows(mask_latent, images),
        masked_latents=repeat_rows(masked_latents, images),
        contexts=model.contexts(params, tokens, nulls),
        hint=inputs,
        modulations=None,
    )
    if inputs is None or model.config.hint.time != "fixed":
        return conditions
    modulations = Denoiser(model, params, conditions).modulations(jnp.zeros(1, jnp.int32))
    return conditions._replace(modulations=jax.tree.map(lambda part: part[0], modulations))


def denoiser(
    model: DiffuseToChoose,
    params: Params,
    tokens: Tokens,
    mask_latent: Float[Array, "cases h w 1"],
    masked_latents: Float[Array, "cases h w c"],
    hint: Images | None,
    **options: Any,
) -> Denoiser:
    """The network with all conditions bound, as the sampling loop wants it; arguments are `bind_conditions`'."""
    conditions = bind_conditions(model, params, tokens, mask_latent, masked_latents, hint, **options)
    return Denoiser(model, params, conditions)
