"""What a builder takes its samples from, and how a case becomes a sample at training size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

from dtc_jax.data.images import InputError
from dtc_jax.data.masks import bounding_box, largest_rectangle
from dtc_jax.data.records import Sample
from dtc_jax.data.references import store_reference
from dtc_jax.data.window import DEFAULT_CONTEXT, crop_window, extract, extract_mask

NO_SOURCE = "no_source"
"""Name of the configuration that TFDS's own command asks every builder for; no data set can have it."""


class Item(NamedTuple):
    """One case, not opened yet: plain data."""

    id: str
    """Unique in its split."""
    detail: Any
    """What the source needs to open it."""


class Case(NamedTuple):
    """One case as its files have it."""

    id: str
    scene: UInt8[np.ndarray, "h w 3"]
    """RGB, with the product in it."""
    mask_levels: UInt8[np.ndarray, "h w"]
    """The fine mask before the threshold, 0 to 255."""
    reference: UInt8[np.ndarray, "rh rw c"]
    """RGB, or RGBA where some of it is transparent."""
    category: str


class Skipped(NamedTuple):
    """A case that a rule leaves out: nothing is wrong with its files."""

    reason: str
    """The same words for the same reason: they are counted."""


class Source(Protocol):
    """Where cases come from. Frozen and picklable: worker processes get a copy."""

    def items(self) -> Mapping[str, Sequence[Item]]:
        """The cases of every split, in order.

        Raises:
            InputError: the source as a whole cannot be used.
        """

    def open(self, item: Item) -> Case | Skipped:
        """Read one case.

        Raises:
            InputError: one of its files is missing or damaged, or they do not fit together.
        """

    def describe(self) -> dict[str, Any]:
        """What a reader of the data set should know: the source, the rules and their versions, the licence."""


def make_sample(case: Case, size: int, context: float = DEFAULT_CONTEXT) -> Sample:
    """A case as it is trained on: a square window of the scene round its mask, at training size.

    The window is the one that sampling cuts (`dtc_jax.data.window`), so that the model is taught what it will see: the
    whole mask, with `context` times its larger side round it, less where the photo is too small. It is half of `size`
    wide at least, where the photo is: enlarging more would teach blur.

    Args:
        case: as opened; its mask's values of at least 128 are inside.
        size: height and width of the scene in the record.
        context: see `window.crop_window`.

    Raises:
        InputError: scene and mask differ in size, or the mask is empty.
    """
    height, width = case.scene.shape[:2]
    if case.mask_levels.shape != (height, width):
        mask_height, mask_width = case.mask_levels.shape
        raise InputError(f"mask: is {mask_width}x{mask_height} pixels, its scene {width}x{height}")
    mask = (case.mask_levels >= 128).astype(np.uint8)
    if not mask.any():
        raise InputError(f"mask: is empty (its largest value is {case.mask_levels.max()}, 128 and more is inside)")
    window = crop_window(mask, context, min_side=size // 2)
    small = extract_mask(mask, window, size)
    return Sample(
        id=case.id,
        scene=extract(case.scene, window, size),
        mask=small,
        reference=store_reference(case.reference, size),
        rectangle=largest_rectangle(small),
        box=bounding_box(small),
        category=case.category,
    )
