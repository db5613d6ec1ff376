"""Contact sheets: a grid of images with labels, for demos, sample grids and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Picture: TypeAlias = np.ndarray | Image.Image
"""uint8, or floating-point in [0, 1]: [h, w], [h, w, 1] or [h, w, 3]; masks of {0, 1} and bools are stretched."""

_GAP = 4
_INK = (40, 40, 40)


def contact_sheet(
    rows: Sequence[Sequence[Picture]],
    columns: Sequence[str] | None = None,
    scale: float = 1,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Lay images out in a grid on white.

    Args:
        rows: pictures; the cells of a column get the width of its widest, those of a row the height of its highest, and
            smaller pictures are centred in them. Rows may be shorter than others.
        columns: labels above the columns.
        scale: enlarge (nearest neighbour for whole numbers, so that pixels can be told apart) or shrink the pictures.
        row_labels: labels at the left of the rows.

    Raises:
        ValueError: no rows, or a number of labels that does not fit.
    """
    if not rows or not any(rows):
        raise ValueError("a contact sheet needs at least one picture")
    pictures = [[_scaled(to_image(cell), scale) for cell in row] for row in rows]
    count = max(len(row) for row in pictures)
    if columns is not None and len(columns) != count:
        raise ValueError(f"{len(columns)} column labels for {count} columns")
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"{len(row_labels)} row labels for {len(rows)} rows")

    font = ImageFont.load_default()
    heights = [max((cell.height for cell in row), default=0) for row in pictures]
    widths = [max(row[index].width for row in pictures if index < len(row)) for index in range(count)]
    if columns is not None:
        widths = [max(width, _text_width(font, label)) for width, label in zip(widths, columns, strict=True)]
    top = _GAP + (_text_height(font) + _GAP if columns is not None else 0)
    left = _GAP + (max(_text_width(font, label) for label in row_labels) + _GAP if row_labels is not None else 0)
    lefts = [left + sum(widths[:index]) + _GAP * index for index in range(count)]
    tops = [top + sum(heights[:index]) + _GAP * index for index in range(len(rows))]

    sheet = Image.new("RGB", (lefts[-1] + widths[-1] + _GAP, tops[-1] + heights[-1] + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for x, label in zip(lefts, columns or [], strict=False):
        draw.text((x, _GAP), label, fill=_INK, font=font)
    for y, label in zip(tops, row_labels or [], strict=False):
        draw.text((_GAP, y), label, fill=_INK, font=font)
    for y, height, row in zip(tops, heights, pictures, strict=True):
        for x, width, cell in zip(lefts, widths, row, strict=False):
            sheet.paste(cell, (x + (width - cell.width) // 2, y + (height - cell.height) // 2))
    return sheet


def to_image(picture: Picture) -> Image.Image:
    """One picture as a Pillow RGB image."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype.kind != "u" or (array.ndim == 2 and array.size and array.max() <= 1):
        array = np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if float(scale).is_integer() else Image.Resampling.LANCZOS)


def _text_width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _text_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(np.ceil(font.getbbox("Ag")[3])) + 1
