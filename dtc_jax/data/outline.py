"""A product's outline from its reference, for masks that do not give it: a box says where, and not what shape.

Of a product photographed on white the shape is known. Stretched into the box just as the hint is, it makes a mask that
follows the product, and the rest of the box is filled with what is around it. It is a choice of sampling, for models
that are unsure of outlines: a model that knows them better paints all of the box, the product's shadow with it.

Needs numpy and Pillow alone: folders exported for PyTorch get this file as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

BOX_FILL = 0.98
"""A mask is a box if it fills this share of its bounding box; drawn by hand, its corners are rarely quite square."""

WHITE = 245
"""A pixel may be background if all its channels are at least this (of 255), as for the hint's margin."""

PURE_WHITE, LEAST_HOLE = 254, 0.002
"""White that the product encloses is a hole (under a handle) if half of it is at least the first, and its share of the
picture at least the second; else it is the product's own white."""

BRIDGED = 0.02
"""A gap in the product that is narrower than twice this share of its larger side is the product's: a white stripe that
runs to its edge."""

OPAQUE = 10
"""A pixel is background if its alpha is below this (of 255), where some of the picture is transparent."""

COVERED = 0.3
"""A pixel belongs to the product's mask if the product covers this share of it."""

MOST_SIDE = 512
"""Pixels; a larger reference is reduced before its background is looked for."""

LEAST_SHARE, MOST_SHARE = 0.2, 0.98
"""Of the box that the outline covers: below the first it has been torn (a white product on white), and above the
second it is the box."""

_SWEEPS = 30
"""At each scale; what is left after them is far below a grey level."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Outline:
    """A product's place inside a box, at the model's size."""

    coverage: np.ndarray
    """float32 [h, w] in [0, 1]: the share of each pixel that the product covers."""
    surroundings: np.ndarray
    """uint8 [h, w, 3]: the scene without what was in the box."""

    @property
    def mask(self) -> np.ndarray:
        """uint8 {0, 1} [h, w], 1 = fill: what the model is to paint."""
        return (self.coverage >= COVERED).astype(np.uint8)

    def compose(self, generated: np.ndarray) -> np.ndarray:
        """The product as generated, before its surroundings: [h, w, 3], floating-point in [0, 1] or uint8, as given."""
        share = self.coverage[..., None]
        if generated.dtype == np.uint8:
            return np.rint(share * generated + (1 - share) * self.surroundings).astype(np.uint8)
        return (share * generated + (1 - share) * (self.surroundings / np.float32(255))).astype(np.float32)


def is_box(mask: np.ndarray) -> bool:
    """Whether a mask [h, w] (non-zero = fill) is a rectangle, or nearly."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return False
    area = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    return bool(np.count_nonzero(mask) >= BOX_FILL * area)


def outline_in_box(
    reference: np.ndarray, crop: Box, place: Box, scene: np.ndarray, mask: np.ndarray, hole: np.ndarray
) -> Outline | None:
    """The reference's outline in a box of the scene.

    Args:
        reference: uint8 RGB or RGBA [r, s, 3 or 4], its backdrop white or transparent.
        crop: (y0, x0, y1, x1) of the reference that the hint shows.
        place: where the hint shows it in the scene.
        scene: uint8 RGB [h, w, 3].
        mask: the box [h, w], non-zero = fill.
        hole: what of the scene does not count [h, w], bool: the box, and beyond the photo what repeats it.

    Returns:
        None where the reference does not show its outline: a photo of a scene, a product that fills its picture, a
        white one on white.
    """
    product = product_coverage(reference, crop)
    if not LEAST_SHARE <= product.mean() <= MOST_SHARE:
        return None
    top, left, bottom, right = place
    piece = Image.fromarray(np.rint(product * 255).astype(np.uint8))
    coverage = np.zeros(mask.shape, np.float32)
    coverage[top:bottom, left:right] = (
        np.asarray(piece.resize((right - left, bottom - top), Image.Resampling.BILINEAR), np.float32) / 255
    )
    coverage *= mask != 0
    outline = Outline(coverage, fill_hole(scene, hole))
    return outline if outline.mask.any() else None


def product_coverage(reference: np.ndarray, crop: Box) -> np.ndarray:
    """How much of each pixel of a part of the reference is product, float32 in [0, 1].

    Of a cut-out (some of the picture is transparent) that is its alpha. Else it is 0 or 1: white is background where it
    reaches the part's border, and where it is a hole; see `PURE_WHITE` and `BRIDGED`. A part that is larger than
    `MOST_SIDE` is reduced first, and so is what is returned.
    """
    y0, x0, y1, x1 = crop
    cut_out = reference.shape[-1] == 4 and (reference[..., 3] < OPAQUE).any()
    values = reference[y0:y1, x0:x1, 3] if cut_out else reference[y0:y1, x0:x1, :3].min(axis=-1)
    factor = -(-max(values.shape) // MOST_SIDE)
    values = np.asarray(Image.fromarray(np.ascontiguousarray(values)).reduce(factor))
    if cut_out:
        return np.where(values >= OPAQUE, values / np.float32(255), np.float32(0))
    return _closed(~_background(values)).astype(np.float32)


def _background(lightness: np.ndarray) -> np.ndarray:
    white = lightness >= WHITE
    part = _parts(white)
    size = np.bincount(part.reshape(-1))
    pure = np.bincount(part.reshape(-1), weights=(lightness >= PURE_WHITE).reshape(-1))
    is_background = (size >= LEAST_HOLE * white.size) & (pure >= size / 2)
    for border in (part[0], part[-1], part[:, 0], part[:, -1]):
        is_background[border] = True
    return is_background[part] & white


def _closed(product: np.ndarray) -> np.ndarray:
    """With the gaps that a square brush of `BRIDGED` does not get into (morphological closing)."""
    reach = int(BRIDGED * max(product.shape))
    if reach == 0:
        return product
    return ~_grown(~_grown(np.pad(product, 2 * reach), reach), reach)


def _grown(inside: np.ndarray, reach: int) -> np.ndarray:
    """Whether anything is inside, up to `reach` pixels away on each axis; a rim that wide is left out."""
    sums = np.pad(inside.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * reach + 1
    return sums[side:, side:] + sums[:-side, :-side] > sums[side:, :-side] + sums[:-side, side:]


def fill_hole(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """An image, uint8 [h, w, 3], whose hole [h, w] is filled smoothly from around it (Laplace's equation).

    Each pixel of the hole is the mean of its neighbours, found from coarse to fine. A hole that is the whole image
    becomes mid-grey.
    """
    if hole.all():
        return np.full_like(image, 128)
    if not hole.any():
        return image
    return np.rint(_filled(image.astype(np.float32), ~hole)).astype(np.uint8)


def _filled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    if known.all():
        return values
    height, width = known.shape
    padding = ((0, height % 2), (0, width % 2))
    weights = np.pad(known.astype(np.float32), padding)[..., None]
    sums = _blocks(np.pad(values, (*padding, (0, 0))) * weights)
    counts = _blocks(weights)
    coarse = _filled(sums / np.maximum(counts, 1), counts[..., 0] > 0)
    guess = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    filled = np.where(known[..., None], values, guess)
    for _ in range(_SWEEPS):
        around = np.pad(filled, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]) / 4
        filled = np.where(known[..., None], values, mean)
    return filled


def _blocks(values: np.ndarray) -> np.ndarray:
    """Sums over blocks of 2 x 2 pixels."""
    return values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]


def _parts(inside: np.ndarray) -> np.ndarray:
    """The number of the part, from 1, that each pixel belongs to; 0 outside. Parts touch along rows and columns."""
    part = np.where(inside, np.arange(1, inside.size + 1).reshape(inside.shape), 0)
    while True:
        before = part
        part = _largest_of_runs(part)
        part = _largest_of_runs(part.T).T
        if np.array_equal(part, before):
            return part


def _largest_of_runs(part: np.ndarray) -> np.ndarray:
    """Every pixel with the largest number of its run: neighbours in a row that are inside, all of them."""
    starts = np.ones(part.shape, bool)
    starts[:, 1:] = (part[:, 1:] == 0) | (part[:, :-1] == 0)
    largest = np.maximum.reduceat(part.reshape(-1), np.flatnonzero(starts))
    return largest[np.cumsum(starts) - 1].reshape(part.shape)
