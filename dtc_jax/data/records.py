"""The record of a prepared data set: its features, how a sample becomes one and is read back, and where data sets lie.

A prepared data set is a TFDS data set in ArrayRecord files: `NAME/VERSION/` with `dataset_info.json`, `features.json`,
`metadata.json` and the shards. A record holds one training sample at the size that it is trained at:

    id          Text
    scene       Image, JPEG (quality 95, no chroma subsampling), RGB [size, size, 3]
    mask        Image, PNG, 0 or 255 [size, size, 1]: the fine mask, 255 = fill
    reference   Image, JPEG like the scene, RGB [r, r, 3], r <= size: the product on a white square
    rectangle   int32 [4]: the largest rectangle inside the mask, y0, x0, y1, x1, half-open
    box         int32 [4]: the mask's bounding box, in the same way
    category    Text, empty if there is none

Reading imports tensorflow_datasets (which needs no TensorFlow for this) when a split is opened, not before.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.config_base import ConfigError
from dtc_jax.data.locations import is_remote
from dtc_jax.data.masks import Box
from dtc_jax.data.printing import one_line

SCHEMA = 1
"""Version of the layout above; written into every data set's metadata."""

IMAGES = ("scene", "mask", "reference")
"""The features that are encoded images."""

FEATURES = ("id", *IMAGES, "rectangle", "box", "category")

SPLITS = ("train", "validation", "test")

JPEG_QUALITY = 95

_READ_TRIES = 3

_FINGERPRINTED = 64
"""Records that a fingerprint reads."""

_SEARCH_DEPTH = 3
"""Folders between what a user names and the version folder, at most: NAME/CONFIG/VERSION."""


class RecordError(ValueError):
    """A record that cannot be decoded; the message names it."""


class Sample(NamedTuple):
    """One training sample on the host."""

    id: str
    scene: UInt8[np.ndarray, "size size 3"]
    """RGB, with the product in it."""
    mask: UInt8[np.ndarray, "size size"]
    """{0, 1}, 1 = fill: the fine mask."""
    reference: UInt8[np.ndarray, "r r 3"]
    """RGB on white."""
    rectangle: Box
    """The largest rectangle inside the mask."""
    box: Box
    """The mask's bounding box."""
    category: str


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A prepared data set: where it is and what its own files say of it."""

    folder: Path
    """The version folder."""
    name: str
    version: str
    splits: Mapping[str, int]
    """Records per split."""
    size: int
    """Height and width of scenes and masks in pixels."""
    metadata: Mapping[str, Any]
    """What the builder wrote down: source, rules and their versions, counts, licence."""


def import_tfds() -> ModuleType:
    """tensorflow_datasets, or a one-line ConfigError that names the extra to install."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError(
            f"data sets of files need tensorflow-datasets ({error}); install it: pip install 'dtc-jax[datasets]'"
        ) from None
    return tensorflow_datasets


def features(size: int) -> Any:
    """The TFDS features of a data set whose scenes are `size` pixels high and wide."""
    kinds = import_tfds().features
    return kinds.FeaturesDict(
        {
            "id": kinds.Text(),
            "scene": kinds.Image(shape=(size, size, 3), encoding_format="jpeg"),
            "mask": kinds.Image(shape=(size, size, 1), encoding_format="png"),
            "reference": kinds.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "rectangle": kinds.Tensor(shape=(4,), dtype=np.int32),
            "box": kinds.Tensor(shape=(4,), dtype=np.int32),
            "category": kinds.Text(),
        }
    )


def encode(sample: Sample) -> dict[str, Any]:
    """A sample as TFDS takes it: encoded images as bytes, boxes as int32 arrays. Plain data, cheap to send on."""
    return {
        "id": sample.id,
        "scene": _jpeg(sample.scene),
        "mask": _png(sample.mask * np.uint8(255)),
        "reference": _jpeg(sample.reference),
        "rectangle": np.array(sample.rectangle, np.int32),
        "box": np.array(sample.box, np.int32),
        "category": sample.category,
    }


def decode(record: Mapping[str, Any]) -> Sample:
    """The sample of a record as `open_split` gives it.

    Raises:
        RecordError: an image that cannot be decoded, a mask that does not fit its scene, or a box outside it.
    """
    name = _text(record["id"])
    try:
        scene, reference = (_image(record[field], cv2.IMREAD_COLOR_RGB) for field in ("scene", "reference"))
        mask = _image(record["mask"], cv2.IMREAD_GRAYSCALE)
    except (TypeError, ValueError, cv2.error) as error:
        reason = " ".join(str(error).split())
        raise RecordError(f"record {name!r}: an image cannot be decoded ({reason})") from None
    rectangle, box = (tuple(int(value) for value in record[field]) for field in ("rectangle", "box"))
    if mask.shape != scene.shape[:2]:
        raise RecordError(f"record {name!r}: scene {scene.shape} and mask {mask.shape} do not fit")
    height, width = mask.shape
    for y0, x0, y1, x1 in (rectangle, box):
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise RecordError(f"record {name!r}: a box {(y0, x0, y1, x1)} is empty or outside {height}x{width} pixels")
    return Sample(
        id=name,
        scene=scene,
        mask=(mask >= 128).astype(np.uint8),
        reference=reference,
        rectangle=(rectangle[0], rectangle[1], rectangle[2], rectangle[3]),
        box=(box[0], box[1], box[2], box[3]),
        category=_text(record["category"]),
    )


def find_data_set(path: str | os.PathLike[str]) -> DataSet:
    """The prepared data set in a folder: the version folder itself, or any folder above it.

    Of several versions of one data set the newest counts. ArrayRecord files are read from local or mounted storage.

    Raises:
        ConfigError: there is none, there are several, it is unfinished, or it has other features than this schema.
    """
    if is_remote(path):
        raise ConfigError(f"data set {path}: is read from local or mounted storage; copy or mount it")
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"data set {root}: no such folder; build one with python -m dtc_jax.data.build")
    found = _version_folders(root, _SEARCH_DEPTH)
    if not found:
        unfinished = any(child.name.startswith("incomplete.") for child in _folders_below(root, _SEARCH_DEPTH))
        reason = "a build that did not finish; run it again" if unfinished else "no dataset_info.json in or below it"
        raise ConfigError(f"data set {root}: not a prepared data set ({reason})")
    parents = {folder.parent for folder in found}
    if len(parents) > 1:
        names = ", ".join(sorted(str(folder) for folder in found))
        raise ConfigError(f"data set {root}: holds several data sets, name one of {names}")
    return _read(max(found, key=lambda folder: _version(folder.name)))


def open_split(data_set: DataSet, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the records of a split, images still encoded; see `decode`. It can be pickled.

    Raises:
        ConfigError: no such split, or its files cannot be opened.
    """
    if split not in data_set.splits:
        raise ConfigError(
            f"data set {data_set.folder}: has no split {split!r}, only {', '.join(sorted(data_set.splits))}"
        )
    tfds = import_tfds()
    skip = tfds.decode.SkipDecoding()
    try:
        builder = tfds.builder_from_directory(str(data_set.folder))
        source: Sequence[Mapping[str, Any]] = builder.as_data_source(split, decoders=dict.fromkeys(IMAGES, skip))
    except Exception as error:  # whatever TFDS and the files' formats raise
        raise ConfigError(f"data set {data_set.folder}: cannot be opened ({one_line(error)}); build it again") from None
    return source


def fetch(records: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any]:
    """A record of `open_split`'s; a storage that fails once or twice changes nothing.

    Raises:
        RecordError: it cannot be read.
    """
    for tries_left in reversed(range(_READ_TRIES)):
        try:
            return records[number]
        except Exception as error:  # whatever files, buckets and the records' encoding raise
            if not tries_left:
                raise RecordError(f"record number {number}: cannot be read ({one_line(error)})") from None
            time.sleep(0.1)
    raise AssertionError("unreachable")


def fingerprint(data_set: DataSet, split: str) -> str:
    """Which records a split holds: 12 digits of a hash of some of them, evenly spread, from the first to the last.

    Of what the records hold, and not of the files, whose bytes differ from build to build. All records would take as
    long as an epoch; another data set, or one that was built again from other pictures, differs in any of these.

    Raises:
        ConfigError: no such split.
    """
    records, count = open_split(data_set, split), data_set.splits[split]
    digest = hashlib.sha256()
    for number in np.linspace(0, count - 1, min(count, _FINGERPRINTED)).astype(int):
        try:
            record = fetch(records, int(number))
        except RecordError:  # training passes over it, too
            continue
        for field in FEATURES:
            value = record[field]
            content = value.encode() if isinstance(value, str) else bytes(value)
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:12]


def _read(folder: Path) -> DataSet:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        described = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        size = int(described["scene"]["image"]["shape"]["dimensions"][0])
        splits = {split["name"]: sum(int(length) for length in split["shardLengths"]) for split in info["splits"]}
        metadata_file = folder / "metadata.json"
        metadata = json.loads(metadata_file.read_text()) if metadata_file.exists() else {}
        name, version = str(info["name"]), str(info["version"])
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"data set {folder}: cannot be read as prepared by this package ({one_line(error)})"
        ) from None
    if missing := sorted(set(FEATURES) - set(described)):
        raise ConfigError(f"data set {folder}: its records have no {missing[0]!r}; build it again")
    if metadata.get("schema", SCHEMA) != SCHEMA:
        raise ConfigError(f"data set {folder}: has schema {metadata['schema']}, this package reads {SCHEMA}")
    return DataSet(folder=folder, name=name, version=version, splits=splits, size=size, metadata=metadata)


def _version_folders(folder: Path, depth: int) -> list[Path]:
    if (folder / "dataset_info.json").exists():
        return [folder]
    if depth == 0:
        return []
    children = [child for child in folder.iterdir() if not child.name.startswith((".", "incomplete."))]
    return [found for child in children if child.is_dir() for found in _version_folders(child, depth - 1)]


def _folders_below(folder: Path, depth: int) -> list[Path]:
    children = [child for child in folder.iterdir() if child.is_dir()]
    return children + [found for child in children if depth > 1 for found in _folders_below(child, depth - 1)]


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())


def _jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    # Without chroma subsampling: at 512 pixels it would bleed the colours of logos and prints.
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _png(image: UInt8[np.ndarray, "h w"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _image(encoded: bytes, mode: int) -> UInt8[np.ndarray, "h w *channels"]:
    """Decoded by OpenCV: the same pixels as Pillow's, without its copies.

    Raises:
        ValueError: cut off, damaged, or not an image.
        cv2.error: larger than OpenCV reads.
    """
    # Not cv2.IMREAD_UNCHANGED: a grey scene or reference is read as RGB.
    content = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(content, mode | cv2.IMREAD_IGNORE_ORIENTATION) if content.size else None
    if image is None:
        raise ValueError("cut off, damaged, or neither JPEG nor PNG")
    return image


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
