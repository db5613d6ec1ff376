"""From a record to a training sample: a pure function of the record and what was drawn for its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from dtc_jax.data.hints import hint_box, make_hint
from dtc_jax.data.masks import Box, box_mask
from dtc_jax.data.order import Augmentation
from dtc_jax.data.records import FEATURES, Sample
from dtc_jax.data.references import frame_reference
from dtc_jax.data.turning import turn_reference
from dtc_jax.model_config import ModelConfig


def make_sample(sample: Sample, augmentation: Augmentation, config: ModelConfig) -> dict[str, np.ndarray]:
    """What the model learns from a record.

    Args:
        sample: Scene and fine mask of one size, at least `config.image_size`; smaller images are made by area averages.
        augmentation: What was drawn for its place.
        config: Sizes, and how the hint is stitched.

    Returns:
        uint8 `scene`, `hint` [size, size, 3], `mask` [size, size, 1] {0, 1} and `reference` [r, r, 3].
    """
    size = config.image_size
    mask = box_mask(sample.box, *sample.mask.shape) if augmentation.box else sample.mask
    scene, reference = sample.scene, sample.reference
    if mask.shape == (size, size):
        largest = sample.rectangle if config.hint.region == "largest_rectangle" else sample.box
        rectangle = sample.box if augmentation.box else largest
    else:
        scene = cv2.resize(scene, (size, size), interpolation=cv2.INTER_AREA)
        mask = shrink_mask(mask, size)
        # Of the mask as it is now: a shrunken rectangle need not be the largest, nor on whole pixels.
        rectangle = hint_box(mask, config.hint.region)
    if augmentation.flip:
        scene, mask, reference = (cv2.flip(image, 1) for image in (scene, mask, reference))
        rectangle = mirrored(rectangle, size)
    reference = turn_reference(reference, augmentation.angle)
    return {
        "scene": scene,
        "mask": mask[..., None],
        "reference": frame_reference(reference, config.reference_size, config.hint.trim),
        "hint": make_hint(reference, rectangle, scene, mask, config.hint),
    }


def extra_arrays(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a record holds beyond the schema (outputs of frozen networks, say): it goes into the batch unchanged."""
    return {name: np.asarray(value) for name, value in record.items() if name not in FEATURES}


def shrink_mask(mask: UInt8[np.ndarray, "s s"], size: int) -> UInt8[np.ndarray, "size size"]:
    """The mask {0, 1} at a smaller size: a pixel that covers any of it is inside, as in sampling."""
    covered = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return (covered > 1e-4).astype(np.uint8)


def mirrored(box: Box, width: int) -> Box:
    """A box `(y0, x0, y1, x1)` in an image that is mirrored left to right."""
    y0, x0, y1, x1 = box
    return y0, width - x1, y1, width - x0
