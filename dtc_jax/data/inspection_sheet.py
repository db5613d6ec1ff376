"""The contact sheet of an inspection: what the model is going to be shown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.data.builders.source import Skipped
from dtc_jax.data.hints import placement, stitch, trim_bounds
from dtc_jax.data.images import InputError
from dtc_jax.data.inspection import Inspection, Reader, Seen, spread
from dtc_jax.data.masks import Box
from dtc_jax.data.records import Sample
from dtc_jax.data.sheets import contact_sheet

MASK, RECTANGLE, BOX = (255, 40, 40), (40, 220, 60), (60, 110, 255)
"""Colours of the mask's outline, its largest rectangle and its bounding box."""

COLUMNS = ("scene: mask red, largest rectangle green, box blue", "hint in the masked scene", "reference")

CELL = 256
"""Pixels of a picture on the sheet."""

_TEXT_WIDTH = 26


def draw_sheet(inspection: Inspection, reader: Reader, rows: int = 16) -> Image.Image:
    """A row for each of some cases: some with findings, then others evenly spread; see `choose_rows`.

    Raises:
        InputError: none of the cases can be drawn.
    """
    pictures: list[list[np.ndarray]] = []
    labels: list[str] = []
    for seen in choose_rows(inspection.seen, rows):
        opened = reader.open(seen.item)
        if not isinstance(opened, Skipped):
            pictures.append(draw_row(opened[1]))
            labels.append(_label(seen))
    if not pictures:
        raise InputError(f"data {inspection.data}: has no case that can be drawn")
    return contact_sheet(pictures, COLUMNS, row_labels=labels)


def choose_rows(seen: Sequence[Seen], rows: int) -> list[Seen]:
    """Of the cases that can be drawn: at most half of the rows with findings, the rest evenly spread, in order."""
    drawable = [index for index, case in enumerate(seen) if case.scene_look is not None]
    flagged = [index for index in drawable if seen[index].findings]
    first = [flagged[index] for index in spread(len(flagged), rows // 2)]
    others = [index for index in drawable if index not in first]
    chosen = first + [others[index] for index in spread(len(others), rows - len(first))]
    return [seen[index] for index in sorted(chosen)]


def draw_row(sample: Sample) -> list[UInt8[np.ndarray, "cell cell 3"]]:
    """Scene with its outlines, masked scene with the hint in it, reference."""
    size = sample.mask.shape[0]
    hint = stitch(sample.reference, sample.rectangle, (size, size))
    masked = np.where(sample.mask[..., None] != 0, np.uint8(127), sample.scene)
    y0, x0, y1, x1 = placement(trim_bounds(sample.reference), sample.rectangle)
    masked[y0:y1, x0:x1] = hint[y0:y1, x0:x1]
    return [_cell(_outlined(sample)), _cell(masked), _cell(sample.reference)]


def _outlined(sample: Sample) -> UInt8[np.ndarray, "size size 3"]:
    image = np.ascontiguousarray(sample.scene).copy()
    thickness = max(1, image.shape[0] // 128)
    _rectangle(image, sample.box, BOX, thickness)
    contours, _ = cv2.findContours(sample.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, MASK, thickness)
    _rectangle(image, sample.rectangle, RECTANGLE, thickness)
    return image


def _rectangle(image: np.ndarray, box: Box, colour: tuple[int, int, int], thickness: int) -> None:
    y0, x0, y1, x1 = box
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, thickness)


def _cell(image: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "cell cell 3"]:
    return np.array(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS))


def _label(seen: Seen) -> str:
    lines = [seen.split, *textwrap.wrap(seen.id, _TEXT_WIDTH)]
    for finding in seen.findings:
        lines += textwrap.wrap(f"! {finding}", _TEXT_WIDTH)
    return "\n".join(lines)
