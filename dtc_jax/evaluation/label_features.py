"""Distances on a network that was trained to read the generated world's own labels.

Published distances (LPIPS, CLIP score, FID) rest on networks that have seen photographs. For the generated world they
are measured on a narrow VGG that has learned silhouettes, patterns, colours and logos from it (`train.py tiny_vgg`)
with another seed than the perceptual loss's: nobody is measured with what it was trained on.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from dtc_jax.config import VGGConfig
from dtc_jax.data.masks import bounding_box
from dtc_jax.evaluation.feature_networks import resized
from dtc_jax.evaluation.metrics import masked_mean
from dtc_jax.models.lpips import unit_length
from dtc_jax.models.vgg import VGG


class LabelScores(NamedTuple):
    """What one batch of results scores, and the features that whole sets are compared by."""

    distance: Float[np.ndarray, "b"]
    """`feature_distance` of result and truth."""
    similarity: Float[np.ndarray, "b"]
    """100 times the cosine of the features of the mask's box in the result and of the reference."""
    features: Float[np.ndarray, "b d"]
    """Of the whole result: for the Frechet distance."""


@partial(jax.jit, static_argnames="config")
def feature_distance(
    config: VGGConfig,
    vgg: PyTree,
    result: UInt8[Array, "b h w 3"],
    truth: UInt8[Array, "b h w 3"],
    mask: UInt8[Array, "b h w 1"],
) -> Float[Array, "b"]:
    """LPIPS's distance (Zhang et al., 2018, equation 1) with every channel's weight one, averaged over the mask.

    At each block's output features are normalised to length one over the channels; their squared difference, summed
    over the channels, is averaged over the places, each weighted by the share of the mask in it; blocks are added up.

    Args:
        config: Sizes of the VGG.
        vgg: Its parameters.
        result: Pasted back.
        truth: What the result should be.
        mask: 1 = filled.
    """
    images = jnp.concatenate([result, truth]).astype(jnp.float32) / 255
    total = jnp.zeros(result.shape[0], jnp.float32)
    levels: Any = VGG(config).apply({"params": vgg}, images, method="block_outputs")
    inside = mask.astype(jnp.float32)
    for number, features in enumerate(levels):
        if number > 0:
            inside = nn.avg_pool(inside, (2, 2), (2, 2))
        first, second = jnp.split(unit_length(features), 2)
        total += masked_mean(jnp.square(first - second).sum(axis=-1, keepdims=True), inside)
    return total


@partial(jax.jit, static_argnames="config")
def label_features(config: VGGConfig, vgg: PyTree, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """The last convolution's features, averaged over the places: what the labels are read from.

    Args:
        config: Sizes of the VGG.
        vgg: Its parameters.
        images: RGB of any size.
    """
    unit = images.astype(jnp.float32) / 255
    features: Any = VGG(config).apply({"params": vgg}, unit, method="final_features")
    average: Array = features.mean(axis=(1, 2))
    return average


def cut_region(
    images: UInt8[np.ndarray, "b h w 3"], mask: UInt8[np.ndarray, "b h w 1"], size: int
) -> UInt8[np.ndarray, "b size size 3"]:
    """The box round each mask, brought to a square as Paint by Example's CLIP score does."""
    boxes = (bounding_box(one[..., 0]) for one in mask)
    return np.stack([resized(image[y0:y1, x0:x1], size) for image, (y0, x0, y1, x1) in zip(images, boxes, strict=True)])


def score_with_labels(
    config: VGGConfig,
    vgg: PyTree,
    result: UInt8[np.ndarray, "b h w 3"],
    truth: UInt8[np.ndarray, "b h w 3"],
    mask: UInt8[np.ndarray, "b h w 1"],
    reference: UInt8[np.ndarray, "b r r 3"],
) -> LabelScores:
    """All that is measured with this network of a batch of results, which are pasted back."""
    region = label_features(config, vgg, cut_region(result, mask, reference.shape[1]))
    shown = label_features(config, vgg, reference)
    cosine = jnp.sum(unit_length(region) * unit_length(shown), axis=-1)
    scores = (
        feature_distance(config, vgg, result, truth, mask),
        100 * cosine,
        label_features(config, vgg, result),
    )
    return LabelScores(*(np.asarray(values, np.float64) for values in scores))
