"""Sampling as one pure function: a batch of 8-bit images in, images out, everything between compiled together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dtc_jax.inference import stages
from dtc_jax.inference.settings import SamplerSettings
from dtc_jax.models.denoiser import Conditions


def generate(
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    keys: Key[Array, " n"],
    guidance_scale: float | Float[Array, ""] | Float[Array, " n"],
    settings: SamplerSettings,
) -> Float[Array, "n h w 3"]:
    """Fill the masks of a batch of scenes with the references' products.

    Pure: the same arguments give the same images. Under `jax.jit` with `settings` static it is one compiled function
    from pixels to pixels (`generate_jit`). It is put together of `dtc_jax.inference.stages`.

    Args:
        params: Every network but `vgg`; with `tokens` in the batch, `reference_encoder` and `reference_projection` are
            not needed.
        batch: uint8 `scene` and `hint` [b, h, w, 3], `mask` [b, h, w, 1] {0, 1} (1 = fill), and `reference`
            [b, r, r, 3] or, in its place, `tokens` [b, l, d] that `stages.encode_reference` returned. A model with a
            prompt takes `scene` and `mask` alone, or with other `tokens` than its product's.
        keys: One typed key per image: an image does not depend on its neighbours in the batch. There may be several
            images of each case, n = b * m: a case's come in a row, and the hint is computed once for all of them.
        guidance_scale: One number, or one per image; may be traced.
        settings: What is compiled.

    Returns:
        Whole images in [0, 1], float32; outside the mask they are the autoencoder's reconstruction.

    Raises:
        ValueError: arrays whose sizes do not fit each other or the model (while tracing).
    """
    conditions = _condition(params, batch, keys, settings)
    state = stages.start(conditions, keys, settings)
    state = stages.advance(params, conditions, state, keys, guidance_scale, stages.steps_of(settings), settings)
    return stages.decode(params, state.latents, settings)


generate_jit = partial(jax.jit, static_argnames="settings")(generate)
"""`generate`, compiled once for every `settings` and batch shape."""


def generate_with_previews(
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    keys: Key[Array, " n"],
    guidance_scale: float | Float[Array, ""] | Float[Array, " n"],
    settings: SamplerSettings,
    every: int = 5,
) -> Iterator[tuple[int, Float[Array, "n h w 3"]]]:
    """`generate`, to be watched: yields what the images look like so far, and at the end `generate`'s own.

    A preview is the decoded estimate of the clean latents. One function is compiled for all parts of the run, whatever
    `every` and the number of steps are; between two previews the host does not wait. Who stops iterating stops the
    sampling.

    Args:
        params: See `generate`, as for the rest.
        batch: Device or host arrays.
        keys: One per image.
        guidance_scale: One number, or one per image.
        settings: The settings of the run.
        every: Steps from one preview to the next.

    Yields:
        (steps taken, images [n, h, w, 3] in [0, 1], float32, on the device). The last has
        `settings.num_inference_steps`, and equals what `generate_jit` returns up to rounding.

    Raises:
        ValueError: `every` is below 1; see also `generate`.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    steps = jax.device_get(stages.steps_of(settings))
    count, scale = settings.num_inference_steps, jnp.asarray(guidance_scale, jnp.float32)
    # The parts are given their steps: with one number in the settings they are compiled once for every number.
    settings = replace(settings, num_inference_steps=1)
    conditions = _condition_jit(params, batch, keys, settings)
    state = stages.start(conditions, keys, settings)
    for step in range(count):
        one = jax.tree.map(lambda x: x[step : step + 1], steps)  # noqa: B023
        state = stages.advance(params, conditions, state, keys, scale, one, settings)
        if step + 1 == count:
            yield count, stages.decode(params, state.latents, settings)
        elif (step + 1) % every == 0:
            yield step + 1, stages.decode(params, state.predicted_x0, settings)


def image_keys(seed: int, count: int, first: int = 0) -> Key[Array, " count"]:
    """The keys of images `first` .. `first + count - 1` of a seed: image i is the same however many are made."""
    key = jax.random.key(seed)
    # numpy's range: JAX's would be compiled for every kind of start.
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(first, first + count, dtype=np.uint32))


def _condition(
    params: Mapping[str, Any], batch: Mapping[str, Array], keys: Key[Array, " n"], settings: SamplerSettings
) -> Conditions:
    cases, images = batch["mask"].shape[0], keys.shape[0]
    if images % cases:
        raise ValueError(f"{images} keys for {cases} cases: need one, or the same number, for each")
    prompted = settings.model.prompted
    if prompted and "reference" in batch:
        raise ValueError("this model's condition is a prompt: the batch has a reference that it cannot see")
    if not prompted and ("tokens" in batch) == ("reference" in batch):
        raise ValueError("the batch needs either reference or tokens")
    if "tokens" in batch:
        tokens = batch["tokens"]
        expected = (cases, settings.model.num_reference_tokens, settings.model.unet.cross_attention_dim)
        if tokens.shape != expected:
            raise ValueError(f"tokens: need shape {expected}, not {tokens.shape}")
    elif prompted:
        tokens = stages.prompt_tokens(params, cases, settings)
    else:
        tokens = stages.encode_reference(params, batch["reference"], settings)
    scene = stages.encode_scene(params, batch["scene"], batch["mask"], settings)
    hint = None if prompted else batch["hint"]
    return stages.condition(params, scene, tokens, hint, settings, images_per_case=images // cases)


_condition_jit = partial(jax.jit, static_argnames="settings")(_condition)
