"""The rule that takes faces out of VITON-HD: the data set "VITON-HD-NoFace" of "Diffuse to Choose" (4.1).

The paper's own rule is unpublished; this one is numbered, and a data set made with it names the number.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from dtc_jax.data.builders.source import Skipped

VERSION = 1
"""Of the rule: counts up with every change that gives other pixels."""

FACE, HEAD = 13, (1, 2, 4)
"""Ids of the parse map: the face, and what else a head has (hat, hair, glasses)."""

MARGIN = 0.02
"""Of the photo's height: cut this much below the face's lowest row, because parse maps end short of the jaw."""

SPECK = 0.0005
"""Of the photo's area: a smaller patch of "face" is an error of the parse map, on a hand or a print. It does not decide
where the photo is cut, and is blanked."""

LEAST_GARMENT = 0.6
"""Of the garment's area that must be left below the cut; raised arms and high poses leave less."""

GREY = 127
"""What blanked pixels become."""


class Cut(NamedTuple):
    """A photo without its face."""

    scene: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    top: int
    """Rows that were cut off."""


def remove_face(
    scene: UInt8[np.ndarray, "full w 3"], parse: UInt8[np.ndarray, "full w"], mask: UInt8[np.ndarray, "full w"]
) -> Cut | Skipped:
    """Cut photo and mask below the face and blank what face is left.

    1. Face patches (id 13, with glasses, joined) smaller than `SPECK` of the photo are specks.
    2. The photo is cut `MARGIN` of its height below the lowest row of the other patches: face and eyes, and the hair
       and hat beside and above them, are gone. Hair that hangs lower stays, and so does the neck.
    3. Specks below the cut, widened by a hundredth of the photo's width, become grey.
    4. A photo with a head (hair, hat or glasses) and no face is skipped: the parse map may have missed the face. So is
       one that the cut leaves less than `LEAST_GARMENT` of the garment, or less than a third of its height.

    Args:
        scene: RGB.
        parse: ids of the parse map, of the same size.
        mask: the fine mask, any values, of the same size.
    """
    height, width = parse.shape
    face = np.isin(parse, (FACE, 4))
    main = _without_specks(face, SPECK * parse.size)
    if not main.any():
        if np.isin(parse, HEAD).mean() > SPECK:
            return Skipped("noface: a head without a face in the parse map")
        top = 0
    else:
        lowest = int(np.flatnonzero(main.any(axis=1))[-1])
        top = min(lowest + 1 + round(MARGIN * height), height)
    inside = mask >= 128
    if height - top < height / 3 or inside[top:].sum() < LEAST_GARMENT * inside.sum():
        return Skipped("noface: too little of the garment below the face")
    reach = max(1, width // 100)
    left = cv2.dilate(face[top:].astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    cut = np.where(left[..., None] != 0, np.uint8(GREY), scene[top:])
    return Cut(cut, np.ascontiguousarray(mask[top:]), top)


def _without_specks(patches: Bool[np.ndarray, "h w"], least: float) -> Bool[np.ndarray, "h w"]:
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(patches.astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= least
    large[0] = False  # what is no patch
    return large[labels]
