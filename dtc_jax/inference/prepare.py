"""From a photo, a mask and a reference of any size to what the model takes, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float, UInt8

from dtc_jax.config import BoxOutline, HintConfig, ModelConfig
from dtc_jax.data.hints import hint_box, make_hint, placement, trim_bounds
from dtc_jax.data.images import (
    ImageLike,
    InputError,
    Photo,
    read_box,
    read_mask,
    read_photo,
    read_reference,
)
from dtc_jax.data.outline import Outline, fill_hole, is_box, outline_in_box
from dtc_jax.data.references import clean_reference, frame_reference
from dtc_jax.data.regions import Regions, split_regions
from dtc_jax.data.window import (
    DEFAULT_CONTEXT,
    Window,
    crop_window,
    default_feather,
    extract,
    extract_hole,
    extract_mask,
    put_back,
)
from dtc_jax.inference.checks import check_context, check_reference

MAX_WINDOW = 16384
"""Pixels; a wider window takes gigabytes. Only a panorama whose mask is wider than that needs one."""

Generated = Float[np.ndarray, "size size 3"] | UInt8[np.ndarray, "size size 3"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One region of one case, ready to sample, and what is needed to put the result back."""

    batch: dict[str, np.ndarray]
    """uint8 `scene`, `hint` [size, size, 3], `mask` [size, size, 1] {0, 1} and `reference` [r, r, 3]: no batch axis.
    For a model with a prompt `scene` and `mask` alone."""
    scene: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    window: Window
    outline: Outline | None = None
    """The reference's, where it gives the outline: then `batch` has its mask, and a scene without what was in the
    box."""

    def compose(self, generated: Generated) -> Generated:
        """The window as it is put back: as generated, or the product of it before its surroundings."""
        return generated if self.outline is None else self.outline.compose(generated)

    def put_back(self, generated: Generated, feather: int = 0) -> UInt8[np.ndarray, "h w 3"]:
        """The whole photo with the generated window inside the mask; see `window.put_back`."""
        return put_back(self.scene, self.compose(generated), self.window, self.mask, feather)


@dataclass(frozen=True, eq=False)
class PreparedPhoto:
    """One case whose mask has one region or several, ready to sample, and what is needed to put the results back."""

    photo: Photo
    regions: tuple[Prepared, ...]
    """One for each place of the product; each is sampled with the same seed."""

    def put_back(self, generated: Sequence[Generated], feather: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The photo with every region's result inside its mask.

        Args:
            generated: the model's results, one for each of `regions`.
            feather: width in pixels of the blend along the masks' edges, inside them; None: see `default_feather`.
        """
        result = self.photo.pixels
        for region, image in zip(self.regions, generated, strict=True):
            width = default_feather(region.window, region.mask, image.shape[0]) if feather is None else feather
            result = put_back(result, region.compose(image), region.window, region.mask, width)
        return result


def read_case(
    scene: ImageLike | Photo,
    mask: ImageLike | None,
    reference: ImageLike | None,
    config: ModelConfig,
    *,
    box: Sequence[int] | None = None,
    context: float = DEFAULT_CONTEXT,
    keep_backdrop: bool = False,
    regions: Regions = "each",
    box_outline: BoxOutline = "model",
) -> PreparedPhoto:
    """Read and check one case and bring it to the model's sizes.

    Args:
        scene: path, Pillow image or uint8 array; any size.
        mask: of the scene's displayed size, white (>= 128) = fill; None with `box`.
        reference: photo of the product; None for a model that a prompt tells of its own.
        config: see `prepare`.
        box: x0, y0, x1, y1 in pixels of the displayed scene.
        context: see `window.crop_window`.
        keep_backdrop: see `prepare`.
        regions: what a mask of several parts means; see `split_regions`.
        box_outline: see `prepare`.

    Raises:
        InputError: an input that cannot be used.
    """
    if box_outline not in get_args(BoxOutline):
        raise InputError(f"box_outline must be {' or '.join(get_args(BoxOutline))}, not {box_outline!r}")
    check_context(context)
    check_reference(reference, config)
    photo = scene if isinstance(scene, Photo) else read_photo(scene)
    size = (photo.pixels.shape[0], photo.pixels.shape[1])
    if mask is not None and box is None:
        region = read_mask(mask, size)
    elif box is not None and mask is None:
        region = read_box(box, size)
    else:
        raise InputError("mask and box: give one of the two")
    try:
        masks = split_regions(region, regions)
    except ValueError as error:
        raise InputError(str(error)) from None
    side = max(crop_window(mask, context).side for mask in masks)
    if side > MAX_WINDOW:
        raise InputError(
            f"scene: the square round the mask is {side} pixels wide, of {MAX_WINDOW} at most; make the scene smaller, "
            "or the mask"
        )
    product = None if reference is None else read_reference(reference)
    if product is not None and not keep_backdrop:
        product = clean_reference(product)
    return PreparedPhoto(
        photo,
        tuple(
            prepare(photo.pixels, mask, product, config, context, keep_backdrop=True, box_outline=box_outline)
            for mask in masks
        ),
    )


def prepare(
    scene: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    reference: UInt8[np.ndarray, "rh rw c"] | None,
    config: ModelConfig,
    context: float = DEFAULT_CONTEXT,
    keep_backdrop: bool = False,
    box_outline: BoxOutline = "model",
) -> Prepared:
    """Cut the window, stitch the hint, frame the reference.

    Args:
        scene: RGB of any size.
        mask: {0, 1} of the scene's size, 1 = fill.
        reference: RGB, or RGBA where some of it is transparent; None for a model with a prompt.
        config: the sizes that the model takes, and how it was taught to place the hint.
        context: see `window.crop_window`.
        keep_backdrop: leave a reference's off-white studio backdrop as it is; see `backdrop.whiten_backdrop`.
        box_outline: `reference` cuts a mask that is a box to the reference's outline; see `outline.outline_in_box`.

    Raises:
        ValueError: an empty mask or a negative context.
    """
    size = config.image_size
    window = crop_window(mask, context)
    small_mask, hole = extract_mask(mask, window, size), extract_hole(mask, window, size)
    small_scene = extract(scene, window, size)
    if (hole != small_mask).any():
        # Beyond the photo its edge is repeated: where that is inside the mask, the old content would show.
        small_scene = np.where((hole > small_mask)[..., None], fill_hole(small_scene, hole > 0), small_scene)
    if reference is None:
        return Prepared({"scene": small_scene, "mask": small_mask[..., None]}, scene, mask, window)
    if not keep_backdrop:
        reference = clean_reference(reference)
    # Asked of the photo's mask: at the model's size a thin ellipse is a box.
    cut = box_outline == "reference" and is_box(mask)
    batch, outline = stitched_batch(small_scene, small_mask, reference, config.hint, hole if cut else None)
    batch["reference"] = frame_reference(reference, config.reference_size, config.hint.trim)
    return Prepared(batch, scene, mask, window, outline)


def stitched_batch(
    scene: UInt8[np.ndarray, "size size 3"],
    mask: UInt8[np.ndarray, "size size"],
    reference: UInt8[np.ndarray, "rh rw c"],
    hint: HintConfig,
    hole: UInt8[np.ndarray, "size size"] | None,
) -> tuple[dict[str, np.ndarray], Outline | None]:
    """`scene`, `mask` and `hint` of a batch at the model's size, and the outline that cuts the mask, if one does.

    Args:
        scene: RGB.
        mask: {0, 1}, 1 = fill.
        reference: its backdrop white or transparent.
        hint: how the model was taught to place the hint, which is in the same place with and without an outline.
        hole: what of the scene does not count, where the mask is a box that the reference's outline is to cut; None:
            the mask stays as it is.
    """
    place = hint_box(mask, hint.region)
    outline = None
    if hole is not None:
        crop = trim_bounds(reference) if hint.trim else (0, 0, *reference.shape[:2])
        outline = outline_in_box(reference, crop, placement(crop, place, hint.fit), scene, mask, hole > 0)
    if outline is not None:
        scene, mask = outline.surroundings, outline.mask
    drawn = make_hint(reference, place, scene, mask, hint)
    return {"scene": scene, "mask": mask[..., None], "hint": drawn}, outline
