"""Results in files, and what each is compared with: two folders, a manifest's cases, or a prepared data set's records.

Whatever the files are, an evaluation sees `ImageSet`: names, and a function that reads the images of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.data.images import InputError, on_white, read_box, read_mask, read_photo, read_reference, read_scene
from dtc_jax.data.manifest import read_manifest
from dtc_jax.data.records import decode, find_data_set, open_split
from dtc_jax.inference.jobs import each_reference

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


class Images(NamedTuple):
    """What there is of one result; None where there is no such image."""

    result: UInt8[np.ndarray, "h w 3"]
    truth: UInt8[np.ndarray, "h w 3"] | None
    """The scene with the product in it."""
    scene: UInt8[np.ndarray, "h w 3"] | None
    """What the result must equal outside the mask."""
    mask: UInt8[np.ndarray, "h w"] | None
    """1 = filled."""
    reference: UInt8[np.ndarray, "r s 3"] | None
    """The product's photo."""


@dataclass(frozen=True)
class ImageSet:
    """Results to measure.

    Attributes:
        names: One per result.
        read: The images of one name.
        has_truth: Whether every result has a truth (and so on).
        where: What it is, for the protocol.
    """

    names: Sequence[str]
    read: Callable[[str], Images]
    has_truth: bool
    has_scene: bool
    has_mask: bool
    has_reference: bool
    where: str


def images_in(folder: Path, what: str) -> dict[str, Path]:
    """The images of a folder by their names without suffix, sorted.

    Raises:
        InputError: no such folder, none in it, or two of one name.
    """
    if not folder.is_dir():
        raise InputError(f"{what} {folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise InputError(f"{what} {folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    twice = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    if twice:
        raise InputError(
            f"{what} {folder}: several images are called {_some(twice)}; names pair images, so keep one each"
        )
    return {path.stem: path for path in files}


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _partners(wanted: Sequence[str], folder: Path, what: str, flag: str) -> dict[str, Path]:
    found = images_in(folder, what)
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise InputError(f"{what} {folder}: lacks {len(lacking)} of {len(wanted)} that {flag} names ({_some(lacking)})")
    return found


def from_folders(
    results: Path,
    truth: Path | None = None,
    masks: Path | None = None,
    references: Path | None = None,
) -> ImageSet:
    """Folders whose images belong together by their names without suffix.

    Args:
        results: What is measured.
        truth: One image for every result and no more; None: there is none.
        masks: At least one for every result.
        references: The same.

    Raises:
        InputError: an empty folder, or names without a partner.
    """
    own = images_in(results, "results")
    names = list(own)
    truths = _partners(names, truth, "truth", f"results {results}") if truth else {}
    missing = [name for name in truths if name not in own]
    if missing:
        raise InputError(
            f"results {results}: lacks {len(missing)} of the {len(truths)} of truth {truth} ({_some(missing)}); "
            "a result that was not made cannot be left out of a figure"
        )
    mask_files = _partners(names, masks, "masks", f"results {results}") if masks else {}
    reference_files = _partners(names, references, "references", f"results {results}") if references else {}

    def read(name: str) -> Images:
        result = read_photo(own[name], "result").pixels
        shown = read_photo(truths[name], "truth").pixels if truth else None
        return Images(
            result=result,
            truth=shown,
            scene=shown,
            mask=read_mask(mask_files[name]) if masks else None,
            reference=on_white(read_reference(reference_files[name])) if references else None,
        )

    where = f"results {results}" + (f", truth {truth}, paired by name" if truth else "")
    return ImageSet(names, read, truth is not None, truth is not None, masks is not None, references is not None, where)


def from_manifest(results: Path, manifest: Path) -> ImageSet:
    """The cases of a manifest, whose results are called after their ids (as sample.py --output-dir does).

    Raises:
        InputError: a manifest that cannot be read, or cases without a result.
    """
    cases = {one.id: one for case in read_manifest(manifest) for one in each_reference(case)}
    files = _partners(list(cases), results, "results", f"manifest {manifest}")
    has_truth = all(case.truth is not None for case in cases.values())

    def read(name: str) -> Images:
        case = cases[name]
        scene = read_scene(case.scene)
        size = (scene.shape[0], scene.shape[1])
        assert case.reference is not None  # the manifest was read with references
        return Images(
            result=read_photo(files[name], "result").pixels,
            truth=read_photo(case.truth, "truth").pixels if has_truth and case.truth is not None else None,
            scene=scene,
            mask=read_mask(case.mask, size) if case.mask is not None else read_box(case.box or (), size),
            reference=on_white(read_reference(case.reference)),
        )

    return ImageSet(list(cases), read, has_truth, True, True, True, f"results {results}, manifest {manifest}")


def from_records(results: Path, path: Path, split: str) -> ImageSet:
    """The records of a prepared data set, whose results are called after their ids.

    The truth is the record's scene, the mask its fine mask.

    Raises:
        InputError: records without a result.
        ConfigError: no prepared data set, or no such split.
    """
    data_set = find_data_set(path)
    source = open_split(data_set, split)
    places = {decode(source[index]).id: index for index in range(len(source))}
    files = _partners(list(places), results, "results", f"data set {data_set.folder}")

    def read(name: str) -> Images:
        sample = decode(source[places[name]])
        result = read_photo(files[name], "result").pixels
        return Images(result, sample.scene, sample.scene, sample.mask, sample.reference)

    where = f"results {results}, data set {data_set.name} {data_set.version}, split {split}"
    return ImageSet(list(places), read, True, True, True, True, where)


def at_size(images: Images, size: int | None, name: str) -> Images:
    """Check that result, truth, scene and mask have one size, or bring them to a square of `size`.

    Colours are resized with Pillow's bicubic filter and antialiasing, masks by the nearest pixel.

    Raises:
        InputError: sizes that differ, or an empty mask.
    """
    if size is not None:

        def square(image: np.ndarray | None, resample: Image.Resampling) -> np.ndarray | None:
            return None if image is None else np.asarray(Image.fromarray(image).resize((size, size), resample))

        bicubic, nearest = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
        result = square(images.result, bicubic)
        assert result is not None
        images = Images(
            result,
            square(images.truth, bicubic),
            square(images.scene, bicubic),
            square(images.mask, nearest),
            images.reference,
        )
    height, width = images.result.shape[:2]
    for what in ("truth", "scene", "mask"):
        other = getattr(images, what)
        if other is not None and other.shape[:2] != (height, width):
            raise InputError(
                f"{name}: the result is {width}x{height} pixels, the {what} {other.shape[1]}x{other.shape[0]}; "
                "--resize N brings all of them to N x N"
            )
    if images.mask is not None and not images.mask.any():
        raise InputError(f"{name}: nothing is inside the mask")
    return images
