"""The parts of `generate`, each pure, batched and compiled: for research, previews and caches.

    scene = encode_scene(params, batch["scene"], batch["mask"], settings)
    tokens = encode_reference(params, batch["reference"], settings)
    conditions = condition(params, scene, tokens, batch["hint"], settings)
    state = start(conditions, keys, settings)
    state = advance(params, conditions, state, keys, guidance_scale, steps_of(settings), settings)
    images = decode(params, state.latents, settings)

`settings` is static; everything else may be traced, mapped and sharded. A case is a scene, a mask and a reference; it
has one image or several, which come in a row in everything that has an image's axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key, Num, UInt8

from dtc_jax.diffusion import SamplerState, Steps, initial_state, per_sample_normal, sample_steps, sampling_steps
from dtc_jax.inference.settings import SamplerSettings, schedule_of, solver_of
from dtc_jax.models.denoiser import Conditions, Denoiser, StepInput, bind_conditions
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch

HINT_BYTES = 512 * 2**20
"""What the modulations of steps that are computed in one pass may take, at most."""

Params = Mapping[str, Any]
GuidanceScale = float | Float[Array, ""] | Float[Array, " images"]


class Scene(NamedTuple):
    """A scene and its mask, as the networks see them."""

    mask_latent: Float[Array, "cases h w 1"]
    """1 = fill, at the latents' size."""
    masked_latents: Float[Array, "cases h w c"]
    """Scaled latents of the scene without the masked region, float32."""


def model_of(settings: SamplerSettings) -> DiffuseToChoose:
    """The networks that settings describe."""
    return DiffuseToChoose(settings.model, settings.dtype)


def steps_of(settings: SamplerSettings) -> Steps:
    """All steps of a run, from the noisiest on; `jax.tree.map(lambda x: x[a:b], ...)` takes some of them."""
    return sampling_steps(
        schedule_of(settings.diffusion),
        solver_of(settings),
        settings.num_inference_steps,
        settings.timestep_spacing,
        settings.steps_offset,
    )


@partial(jax.jit, static_argnames="settings")
def encode_scene(
    params: Params, scene: UInt8[Array, "cases H W 3"], mask: Num[Array, "cases H W 1"], settings: SamplerSettings
) -> Scene:
    """Latents of scenes without their masked regions.

    Args:
        params: Needs `vae`.
        scene: RGB; height and width as `normalize_batch` wants them.
        mask: {0, 1}, 1 = fill.
        settings: Static.
    """
    inputs = normalize_batch({"scene": scene, "mask": mask}, settings.model)
    mask_latent = latent_mask(inputs["mask"], settings.model.vae.factor)
    return Scene(mask_latent, model_of(settings).encode_images(params, masked_scene(inputs["scene"], inputs["mask"])))


@partial(jax.jit, static_argnames="settings")
def encode_reference(
    params: Params, reference: UInt8[Array, "cases r r 3"], settings: SamplerSettings
) -> Float[Array, "cases l d"]:
    """A reference's tokens at the cross-attention's width: all that the networks are told of it but for the hint.

    They depend on the reference, on `reference_encoder` and on `reference_projection`, and may be kept: `generate`
    takes them as `tokens` in place of `reference`.

    Args:
        params: Needs `reference_encoder` and `reference_projection`.
        reference: RGB, of the encoder's size.
        settings: Static.
    """
    inputs = normalize_batch({"reference": reference}, settings.model)
    return model_of(settings).encode_reference(params, inputs["reference"])


@partial(jax.jit, static_argnames=("settings", "cases"))
def prompt_tokens(params: Params, cases: int, settings: SamplerSettings) -> Float[Array, "cases l d"]:
    """The tokens of the prompt that stands for a model's one product, for each case; needs `prompts`."""
    return model_of(settings).prompts(params, jnp.zeros(cases))


@partial(jax.jit, static_argnames=("settings", "images_per_case"))
def condition(
    params: Params,
    scene: Scene,
    tokens: Float[Array, "cases l d"],
    hint: UInt8[Array, "cases H W 3"] | None,
    settings: SamplerSettings,
    images_per_case: int = 1,
) -> Conditions:
    """Everything that is the same at every step, computed once.

    Args:
        params: All trained networks.
        scene: From `encode_scene`.
        tokens: From `encode_reference` or `prompt_tokens`.
        hint: The stitched reference, RGB, of the scene's size; None drops it.
        settings: Static; `guidance` and `unconditional` count.
        images_per_case: Static; how many images each case has.
    """
    model = model_of(settings)
    return bind_conditions(
        model,
        params,
        tokens.astype(settings.dtype),
        *scene,
        None if hint is None else normalize_batch({"hint": hint}, settings.model)["hint"],
        guidance=settings.guidance,
        unconditional=settings.unconditional,
        images_per_case=images_per_case,
    )


@partial(jax.jit, static_argnames="settings")
def hint_features(
    params: Params, conditions: Conditions, timesteps: Int32[Array, " steps"], settings: SamplerSettings
) -> list[tuple[Array, Array]]:
    """What the fusion makes of the hint (FiLM: gamma and beta) [steps, rows, ...] for every skip and the middle.

    They are those of any number of timesteps, in one pass. There is a row for each case and, where they differ, branch.

    Args:
        params: Needs `hint_encoder` and `fusion`.
        conditions: From `condition`.
        timesteps: Of the diffusion; without effect where the model's hint has a fixed time.
        settings: Static.

    Raises:
        ValueError: there is no hint.
    """
    return Denoiser(model_of(settings), params, conditions).modulations(timesteps)


@partial(jax.jit, static_argnames="settings")
def denoise(
    params: Params,
    conditions: Conditions,
    latents: Float[Array, "images h w c"],
    timestep: Num[Array, ""],
    settings: SamplerSettings,
    modulations: list[tuple[Array, Array]] | None = None,
) -> tuple[Float[Array, "images h w c"], Float[Array, "images h w c"] | None]:
    """The networks' prediction at one timestep: the conditional one, and the unconditional one (None without guidance).

    Args:
        params: All trained networks.
        conditions: From `condition`.
        latents: Noisy latents.
        timestep: In [0, T).
        settings: Static.
        modulations: `hint_features` of one step, without its leading axis; None computes them here.
    """
    bound = Denoiser(model_of(settings), params, conditions)
    if modulations is None:
        return bound(latents, timestep)
    temb = bound.model.embed_time(params, timestep[None])
    return bound(latents, timestep, StepInput(temb, modulations))


@partial(jax.jit, static_argnames="settings")
def start(conditions: Conditions, keys: Key[Array, " images"], settings: SamplerSettings) -> SamplerState:
    """The state before the first step: noise, from each image's key alone."""
    noise_keys, _ = _split(keys)
    noise = per_sample_normal(noise_keys, conditions.masked_latents.shape[1:])
    return initial_state(solver_of(settings), noise)


@partial(jax.jit, static_argnames=("settings", "hint_bytes"))
def advance(
    params: Params,
    conditions: Conditions,
    state: SamplerState,
    keys: Key[Array, " images"],
    guidance_scale: GuidanceScale,
    steps: Steps,
    settings: SamplerSettings,
    hint_bytes: int = HINT_BYTES,
) -> SamplerState:
    """Take some consecutive steps.

    The hint encoder runs ahead, on as many steps at once as divide their number and as memory allows.

    Args:
        params: All trained networks.
        conditions: From `condition`.
        state: From `start`, or from the steps before.
        keys: One for each image, the same for all parts of a run.
        guidance_scale: One number, or one for each image.
        steps: `steps_of(settings)`, or some of them.
        settings: Static.
        hint_bytes: Static; what the modulations of the steps that are computed at once may take.
    """
    bound = Denoiser(model_of(settings), params, conditions)
    _, solver_keys = _split(keys)

    def chunk(state: SamplerState, steps: Steps) -> tuple[SamplerState, None]:
        state, _ = sample_steps(
            bound,
            schedule_of(settings.diffusion),
            solver_of(settings),
            settings.diffusion.prediction_type,
            state,
            solver_keys,
            steps,
            guidance_scale=guidance_scale,
            guidance_rescale=settings.guidance_rescale or None,
            guidance_interval=settings.guidance_interval if settings.guidance else None,
            conditional_fn=bound.conditional,
            step_inputs=bound.step_inputs(steps.timestep),
        )
        return state, None

    count = steps.timestep.shape[0]
    size = steps_at_once(bound, count, hint_bytes)
    chunks = jax.tree.map(lambda x: x.reshape(count // size, size), steps)
    return jax.lax.scan(chunk, state, chunks)[0]


@partial(jax.jit, static_argnames="settings")
def decode(
    params: Params, latents: Float[Array, "images h w c"], settings: SamplerSettings
) -> Float[Array, "images H W 3"]:
    """Images in [0, 1], float32, of scaled latents; needs `vae`."""
    return jnp.clip((model_of(settings).decode_latents(params, latents).astype(jnp.float32) + 1) / 2, 0, 1)


def steps_at_once(bound: Denoiser, count: int, hint_bytes: int) -> int:
    """The largest divisor of `count` steps whose modulations take no more than this, at least 1."""
    inputs = jax.eval_shape(bound.step_inputs, jax.ShapeDtypeStruct((1,), jnp.int32))
    each = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(inputs.modulations))
    most = count if each == 0 else hint_bytes // each
    return next(size for size in range(min(most, count), 0, -1) if count % size == 0) if most > 0 else 1


def _split(keys: Key[Array, " images"]) -> tuple[Key[Array, " images"], Key[Array, " images"]]:
    """Each image's keys of the first noise, and of what solvers add."""
    split = jax.vmap(jax.random.split)(keys)
    return split[:, 0], split[:, 1]
