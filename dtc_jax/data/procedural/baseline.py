"""Naive paste: what the hint alone achieves, with no model. Every figure for a model is to be read beside it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt8

from dtc_jax.data.hints import WHITE_TOLERANCE, Fit, Region, hint_box_jax, stitch_jax, trim_bounds_jax


def naive_paste(
    scene: UInt8[Array, "h w 3"],
    mask: UInt8[Array, "h w 1"],
    reference: UInt8[Array, "r r 3"],
    fit: Fit = "contain",
    region: Region = "largest_rectangle",
) -> Float[Array, "h w 3"]:
    """The reference, trimmed and with its white keyed out, in the mask: placed as the paper places its hint.

    With `fit` and `region` as a model has them, it is that model's own hint as a picture.

    What of the mask stays free takes the mean colour of the scene outside the mask. Values in [0, 255].
    """
    inside = mask.astype(jnp.float32)
    image = scene.astype(jnp.float32)
    around = (image * (1 - inside)).sum(axis=(0, 1)) / jnp.maximum((1 - inside).sum(), 1.0)
    keyed = (reference < WHITE_TOLERANCE).any(axis=-1, keepdims=True).astype(jnp.float32)
    premultiplied = jnp.concatenate([reference.astype(jnp.float32) * keyed, keyed], axis=-1)
    pasted = stitch_jax(
        premultiplied,
        hint_box_jax(mask[..., 0], region),
        (scene.shape[0], scene.shape[1]),
        fit,
        crop=trim_bounds_jax(reference),
    )
    color, alpha = pasted[..., :3], pasted[..., 3:]
    return image * (1 - inside) + (color + around * (1 - alpha)) * inside


def masked_error(
    image: Num[Array, "*b h w 3"], truth: Num[Array, "*b h w 3"], mask: Num[Array, "*b h w 1"]
) -> Float[Array, "*b"]:
    """Mean squared error inside the mask, in the images' squared units."""
    inside = mask.astype(jnp.float32)
    squared = ((image.astype(jnp.float32) - truth.astype(jnp.float32)) ** 2).mean(axis=-1, keepdims=True)
    return (squared * inside).sum(axis=(-3, -2, -1)) / jnp.maximum(inside.sum(axis=(-3, -2, -1)), 1.0)
