"""From a batch of 8-bit images to the networks' ranges, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from dtc_jax.config import CLIPVisionConfig, ModelConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_image(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """0..255 to [-1, 1], the autoencoder's range."""
    return image.astype(jnp.float32) / 127.5 - 1


def normalize_reference(reference: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """0..255 to zero mean and unit variance over ImageNet, DINOv2's range."""
    return normalize_imagenet(reference.astype(jnp.float32) / 255)


def normalize_imagenet(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """[0, 1] to zero mean and unit variance over ImageNet."""
    mean, std = jnp.asarray(IMAGENET_MEAN, jnp.float32), jnp.asarray(IMAGENET_STD, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std


def normalize_clip(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """0..255 to zero mean and unit variance over the images that CLIP was trained on, CLIP's range."""
    mean, std = jnp.asarray(CLIP_MEAN, jnp.float32), jnp.asarray(CLIP_STD, jnp.float32)
    return (image.astype(jnp.float32) / 255 - mean) / std


def normalize_batch(batch: Mapping[str, Array], config: ModelConfig) -> dict[str, Array]:
    """Normalise what a batch holds; other entries pass unchanged.

    Args:
        batch: Any of `scene` and `hint` [b, h, w, 3], `reference` [b, r, r, 3], uint8 RGB, and `mask` [b, h, w, 1],
            {0, 1}, 1 = fill.
        config: Sizes that the images must fit.

    Returns:
        `scene` in [-1, 1], `hint` in [0, 1], `reference` by the mean and deviation that its encoder was trained with,
        `mask` 0.0 or 1.0; float32.

    Raises:
        ValueError: an image has a size that the networks cannot take, or scene, hint and mask differ in size.
    """
    _check_sizes(batch, config)
    result = dict(batch)
    if "scene" in batch:
        result["scene"] = normalize_image(batch["scene"])
    if "hint" in batch:
        result["hint"] = batch["hint"].astype(jnp.float32) / 255
    if "reference" in batch:
        clip = isinstance(config.reference_encoder, CLIPVisionConfig)
        result["reference"] = (normalize_clip if clip else normalize_reference)(batch["reference"])
    if "mask" in batch:
        result["mask"] = batch["mask"].astype(jnp.float32)
    return result


def latent_mask(mask: Float[Array, "b h w 1"], factor: int) -> Float[Array, "b h2 w2 1"]:
    """The mask at the latents' size: nearest, source index floor(i * factor), as PyTorch's `interpolate`.

    Raises:
        ValueError: height or width is not divisible by `factor`.
    """
    if mask.shape[1] % factor or mask.shape[2] % factor:
        raise ValueError(f"mask is {mask.shape[1]}x{mask.shape[2]}; height and width must be divisible by {factor}")
    return mask[:, ::factor, ::factor, :]


def masked_scene(scene: Float[Array, "b h w 3"], mask: Float[Array, "b h w 1"]) -> Float[Array, "b h w 3"]:
    """The scene in [-1, 1] with its hole at 0, which is mid-grey."""
    return scene * (1 - mask)


def _check_sizes(batch: Mapping[str, Array], config: ModelConfig) -> None:
    sizes = {name: batch[name].shape[1:3] for name in ("scene", "hint", "mask") if name in batch}
    step = config.vae.factor * config.unet.downsampling
    for name, (height, width) in sizes.items():
        if height % step or width % step:
            raise ValueError(f"{name} is {height}x{width}; height and width must be divisible by {step}")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise ValueError(f"scene, hint and mask need the same size, not {listed}")
    if "reference" not in batch:
        return
    expected = (config.reference_size,) * 2
    if batch["reference"].shape[1:3] != expected:
        height, width = batch["reference"].shape[1:3]
        raise ValueError(f"reference is {height}x{width}; the reference encoder takes {expected[0]}x{expected[1]}")
