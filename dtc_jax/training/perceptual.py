"""The perceptual term: VGG features of the decoded x0 estimate against those of the scene (paper 3.3).

Decoding and VGG are expensive, so that the term can leave out samples (by rank or by timestep) and everything but a
window round the mask. What it selects it selects within a device: no picture moves between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dtc_jax.config import AutoencoderKLConfig, ExperimentConfig, LossConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.remat import recomputed
from dtc_jax.models.vgg import perceptual_distance

HALO = 4
"""Latents round the window that are decoded with it and cut off again: the decoder pads its input with zeros, whose
traces would otherwise be in the picture (docs/objective.md has how far they reach)."""

PerceptualTerm = Callable[..., Float[Array, " n"]]


def perceptual_groups(batch_size: int, fraction: float) -> tuple[int, int]:
    """How a batch is divided for `perceptual_fraction`: (samples in a group, how many of them are decoded).

    The smallest groups that together decode `round(fraction * batch_size)` samples, at least one.
    """
    count = max(1, round(fraction * batch_size))
    divisor = math.gcd(batch_size, count)
    return batch_size // divisor, count // divisor


def chosen_rows(timesteps: Int[Array, " b"], fraction: float) -> Int[Array, "groups chosen"]:
    """Of each group of neighbouring samples those with the smallest timesteps, as places within the group."""
    group, chosen = perceptual_groups(timesteps.shape[0], fraction)
    return jnp.argsort(timesteps.reshape(-1, group), axis=1)[:, :chosen]


def least_noisy(timesteps: Int[Array, " b"], fraction: float, *arrays: Array) -> tuple[Array, ...]:
    """Of each array [b, ...] the rows that `chosen_rows` names.

    With timesteps that are stratified over the groups (`sample_timesteps(spread=...)`) these are the least noisy of
    the whole batch.
    """
    group, chosen = perceptual_groups(timesteps.shape[0], fraction)
    if group == chosen:
        return arrays
    rows = chosen_rows(timesteps, fraction)

    def select(array: Array) -> Array:
        grouped = array.reshape(-1, group, *array.shape[1:])
        taken = jax.vmap(lambda members, places: jnp.take(members, places, axis=0))(grouped, rows)
        return taken.reshape(-1, *array.shape[1:])

    return tuple(select(array) for array in arrays)


def perceptual_shares(timesteps: Int[Array, " b"], config: LossConfig) -> Float[Array, " b"]:
    """What each sample of the global batch weighs in the term's mean; the rest, and a batch without any, weigh 0."""
    group, _ = perceptual_groups(timesteps.shape[0], config.perceptual_fraction)
    chosen = jax.nn.one_hot(chosen_rows(timesteps, config.perceptual_fraction), group).sum(axis=1).reshape(-1)
    if config.perceptual_max_timestep is not None:
        chosen = chosen * (timesteps <= config.perceptual_max_timestep)
    return chosen / jnp.maximum(chosen.sum(), 1)


def window_origin(mask: Float[Array, "b h w 1"], window: int, factor: int) -> Int[Array, "b 2"]:
    """Top left corner, in latents, of a square of `window` pixels centred on the mask's bounding box.

    Moved into the picture where it would stick out; an empty mask has the picture's middle.
    """
    corner = []
    for axis in (1, 2):
        size = mask.shape[axis]
        occupied = (mask > 0).any(axis=(3 - axis, 3))
        first = jnp.argmax(occupied, axis=1)
        last = size - 1 - jnp.argmax(occupied[:, ::-1], axis=1)
        # Twice the corner's pixel, over twice the factor, to the nearest latent.
        nearest = (first + last + 1 - window + factor) // (2 * factor)
        corner.append(jnp.clip(nearest, 0, (size - window) // factor))
    return jnp.stack(corner, axis=1)


def crop(images: Float[Array, "b h w c"], origin: Int[Array, "b 2"], size: int) -> Float[Array, "b size size c"]:
    """A square of each image, with its own top left corner."""

    def one(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, image.shape[-1]))

    return jax.vmap(one)(images, origin)


def decode_window(
    decode: Callable[[Array], Array],
    latents: Float[Array, "b h w c"],
    origin: Int[Array, "b 2"],
    size: int,
    factor: int,
) -> Float[Array, "b H W 3"]:
    """Pixels of a square of `size` latents at `origin`, decoded from that square and `HALO` latents round it."""
    whole = latents.shape[1]
    padded = min(size + 2 * HALO, whole)
    outer = jnp.clip(origin - HALO, 0, whole - padded)
    decoded = decode(crop(latents, outer, padded))
    return crop(decoded, (origin - outer) * factor, size * factor)


def perceptual_term(model: DiffuseToChoose, config: ExperimentConfig) -> PerceptualTerm:
    """The function `(params, x0_hat, scene, mask) -> distance of each sample`.

    `x0_hat` are scaled latents, `scene` is in [-1, 1]. Gradients go to `x0_hat` alone, not to decoder or VGG.
    """
    factor, window = config.model.vae.factor, config.loss.perceptual_window
    taesd = config.loss.perceptual_decoder == "taesd"
    decoder = model.decode_taesd if taesd else model.decode_latents
    in_blocks = isinstance(config.model.vae, AutoencoderKLConfig) and not taesd
    whole = window in (0, config.model.image_size)

    def term(
        params: PyTree, x0_hat: Float[Array, "n h w c"], scene: Float[Array, "n H W 3"], mask: Float[Array, "n H W 1"]
    ) -> Float[Array, " n"]:
        frozen = {
            name: jax.lax.stop_gradient(tree) if name in ("vae", "taesd", "vgg") else tree
            for name, tree in params.items()
        }

        def decode(latents: Array) -> Array:
            # The large autoencoder divides itself into blocks; the small ones are a block each.
            if config.training.remat != "none" and not in_blocks:
                return recomputed(decoder)(frozen, latents)
            return decoder(frozen, latents)

        if whole:
            decoded = decode(x0_hat)
        else:
            origin = window_origin(mask, window, factor)
            decoded = decode_window(decode, x0_hat, origin, window // factor, factor)
            scene = crop(scene, origin * factor, window)
        return perceptual_distance(model.vgg_features(frozen, decoded), model.vgg_features(frozen, scene))

    return term
