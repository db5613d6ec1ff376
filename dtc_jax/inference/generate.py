"""Sampling as one pure function: a batch of 8-bit images in, images out, everything between compiled together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dtc_jax.diffusion import per_sample_normal, sample
from dtc_jax.inference.settings import SamplerSettings, schedule_of, solver_of
from dtc_jax.models.denoiser import denoiser
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch


def generate(
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    keys: Key[Array, " b"],
    guidance_scale: float | Float[Array, ""] | Float[Array, " b"],
    settings: SamplerSettings,
) -> Float[Array, "b h w 3"]:
    """Fill the masks of a batch of scenes with the references' products.

    Pure: the same arguments give the same images. Under `jax.jit` with `settings` static it is one compiled function
    from pixels to pixels (`generate_jit`).

    Args:
        params: Every network but `vgg`.
        batch: uint8 `scene` and `hint` [b, h, w, 3], `mask` [b, h, w, 1] {0, 1} (1 = fill), `reference`
            [b, r, r, 3].
        keys: One typed key per image: an image does not depend on its neighbours in the batch.
        guidance_scale: One number, or one per image; may be traced.
        settings: What is compiled.

    Returns:
        Whole images in [0, 1], float32; outside the mask they are the autoencoder's reconstruction.
    """
    model = DiffuseToChoose(settings.model, settings.dtype)
    inputs = normalize_batch(batch, settings.model)
    mask = inputs["mask"]
    masked_latents = model.encode_images(params, masked_scene(inputs["scene"], mask))
    bind = partial(
        denoiser,
        model,
        params,
        model.encode_reference(params, inputs["reference"]),
        latent_mask(mask, settings.model.vae.factor),
        masked_latents,
        inputs["hint"],
        unconditional=settings.unconditional,
    )
    interval = settings.guidance_interval if settings.guidance else None
    noise_keys, solver_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
    latents = sample(
        bind(guidance=settings.guidance),
        schedule_of(settings.diffusion),
        solver_of(settings),
        settings.diffusion.prediction_type,
        per_sample_normal(noise_keys, masked_latents.shape[1:]),
        solver_keys,
        num_inference_steps=settings.num_inference_steps,
        spacing=settings.timestep_spacing,
        steps_offset=settings.steps_offset,
        guidance_scale=guidance_scale,
        guidance_rescale=settings.guidance_rescale or None,
        guidance_interval=interval,
        conditional_fn=None if interval is None else bind(guidance=False),
    )
    return jnp.clip((model.decode_latents(params, latents).astype(jnp.float32) + 1) / 2, 0, 1)


generate_jit = partial(jax.jit, static_argnames="settings")(generate)
"""`generate`, compiled once for every `settings` and batch shape."""


def image_keys(seed: int, count: int, first: int = 0) -> Key[Array, " count"]:
    """The keys of images `first` .. `first + count - 1` of a seed: image i is the same however many are made."""
    key = jax.random.key(seed)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(first, first + count, dtype=jnp.uint32))
