"""What a person wants to know of a data set before paying for a cluster: what is in it, and what looks wrong.

Works on a prepared data set, a manifest, or an unpacked VITON-HD folder. What looks wrong is a guess by rules, each
with its numbers below; a finding is a reason to look, not a verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from dtc_jax.data.builders.manifest_source import ManifestSource
from dtc_jax.data.builders.source import Case, Item, Skipped, Source, make_sample
from dtc_jax.data.builders.vitonhd_source import VitonHDSource
from dtc_jax.data.duplicates import Look, look_of, same_looks
from dtc_jax.data.hints import WHITE_TOLERANCE, trim_bounds
from dtc_jax.data.images import InputError
from dtc_jax.data.locations import Location, is_remote
from dtc_jax.data.masks import bounding_box
from dtc_jax.data.printing import one_line
from dtc_jax.data.records import DataSet, RecordError, Sample, decode, find_data_set, open_split

GREY_LEVELS = (32, 223)
"""Between these a mask's pixel is neither out nor in."""

GREY_WIDTH, GREY_SHARE = 5, 0.001
"""Grey that is wider than this many pixels (an edge that is only smooth is not), over this share of the picture."""

INVERTED_BORDER, INVERTED_SHARE = 0.9, 0.5
"""A mask over this share of its bounding box's border and this share of the picture looks like white for "keep"."""

FULL_SHARE = 0.9
"""A mask over this share of the picture leaves no scene to fit the product into."""

WHITE_BORDER = 0.5
"""Share of white along a product's bounding box, where that reaches from side to side of its picture: less than this is
a photo with something behind the product."""

FEW_PIXELS = 32
"""A largest rectangle with a shorter side than this leaves the hint no details, at a size of 512."""

BROKEN, SKIPPED = "broken", "skipped by the builder's rules"
INVERTED, GREY, FULL = "inverted masks", "grey masks", "masks over the whole picture"
NOT_WHITE = "references not on white"
ENLARGED = "scenes enlarged more than twice"
SMALL_RECTANGLE = "largest rectangle of few pixels"
SCENE_TWICE, REFERENCE_TWICE = "scenes in more than one split", "references in more than one split"


class Seen(NamedTuple):
    """One case, inspected."""

    split: str
    id: str
    item: Any
    """What opens it again."""
    problem: str = ""
    """Why it is broken."""
    findings: tuple[str, ...] = ()
    scene_size: tuple[int, int] = (0, 0)
    """Height and width of the photo, or of the stored window."""
    reference_size: tuple[int, int] = (0, 0)
    mask_share: float = 0
    """Of the window."""
    scene_look: Look | None = None
    reference_look: Look | None = None


class Reader(NamedTuple):
    """A data set of any kind, to inspect."""

    kind: str
    splits: Mapping[str, Sequence[Any]]
    """What `open` takes, by split."""
    open: Callable[[Any], tuple[Case | None, Sample] | Skipped]
    """The case as its files have it (None in a prepared data set), and its sample.

    Raises InputError, RecordError, or whatever damaged shards bring about: it is broken."""
    describe: Mapping[str, Any]
    name: Callable[[Any], str]
    """What to call a case that cannot be opened."""
    files: Callable[[], Iterable[Location]] = tuple
    """Those that it is made of: nothing may be written over them."""
    folders: tuple[Path, ...] = ()
    """Those that belong to it: nothing may be written into them."""


@dataclass
class Inspection:
    """The whole answer."""

    data: str
    kind: str
    describe: Mapping[str, Any]
    seen: list[Seen] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    """Cases by split, inspected or not."""
    findings: dict[str, list[str]] = field(default_factory=dict)
    """Kinds of findings, and `split/id` of the cases that have them."""


def open_data(data: str, size: int = 512) -> Reader:
    """A prepared data set, a manifest (a file or a URI) or a VITON-HD folder.

    Args:
        data: path or URI.
        size: at which samples of cases that are not prepared yet are made.

    Raises:
        InputError, ConfigError: it is none of these, or cannot be read.
    """
    try:
        return _open_data(data, size)
    # Too long a name, a folder that may not be searched.
    except OSError as error:
        raise InputError(f"data {data}: cannot be read ({error.strerror or error})") from None


def _open_data(data: str, size: int) -> Reader:
    path = Path(data)
    if is_remote(data) or path.is_file():
        manifest = ManifestSource(manifest=data)
        return _source_reader("manifest", manifest, size)._replace(files=manifest.files)
    pairs = [path / f"{split}_pairs.txt" for split in ("train", "test")]
    if any(file.is_file() for file in pairs):
        reader = _source_reader("VITON-HD folder", VitonHDSource(root=data), size)
        return reader._replace(files=lambda: pairs, folders=(path / "train", path / "test"))
    if not path.exists():
        raise InputError(f"data {data}: no such file or folder")
    return _record_reader(find_data_set(data))


def inspect_data(
    data: str,
    reader: Reader,
    limit: int | None = None,
    workers: int = 4,
    progress: Callable[[int], object] = lambda count: None,
) -> Inspection:
    """Look at every case, or at `limit` of each split, evenly spread.

    Args:
        data: what the reader was opened from, for the answer.
        reader: see `open_data`.
        limit: most cases of a split.
        workers: threads.
        progress: called with the number of cases done since the last call.
    """
    result = Inspection(data, reader.kind, reader.describe, totals={k: len(v) for k, v in reader.splits.items()})
    chosen = [(split, items[index]) for split, items in reader.splits.items() for index in spread(len(items), limit)]
    with ThreadPoolExecutor(workers) as pool:
        for seen in _ordered(pool, lambda pair: _look_at(reader, *pair), chosen, 4 * workers):
            result.seen.append(seen)
            progress(1)
    found: dict[str, list[str]] = defaultdict(list)
    for seen in result.seen:
        for finding in seen.findings:
            found[finding].append(f"{seen.split}/{seen.id}")
    whole = [seen for seen in result.seen if not seen.problem and seen.scene_look is not None]
    for kind, looks in (
        (SCENE_TWICE, [(f"{seen.split}/{seen.id}", seen.split, seen.scene_look) for seen in whole]),
        (REFERENCE_TWICE, [(f"{seen.split}/{seen.id}", seen.split, seen.reference_look) for seen in whole]),
    ):
        pairs = same_looks([(name, split, look) for name, split, look in looks if look is not None])
        if pairs:
            found[kind] = [f"{first} = {second}" for first, second in pairs]
    result.findings = dict(found)
    return result


def spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` indices, evenly spread."""
    if limit is None or count <= limit:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, limit).round()]


def is_inverted(levels: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether white looks like "keep": it fills most of the picture and goes round something that it leaves out.

    Its bounding box is looked at, because a window that reaches beyond its photo has nothing to fill there.
    """
    inside = levels >= 128
    if inside.mean() <= INVERTED_SHARE:
        return False
    y0, x0, y1, x1 = bounding_box(inside)
    crop = inside[y0:y1, x0:x1]
    border = np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]])
    return bool(border.mean() > INVERTED_BORDER and not crop.all())


def is_grey(levels: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether the mask has areas, not only edges, that are neither black nor white."""
    grey = ((levels > GREY_LEVELS[0]) & (levels < GREY_LEVELS[1])).astype(np.uint8)
    wide = cv2.erode(grey, np.ones((GREY_WIDTH, GREY_WIDTH), np.uint8))
    return bool(wide.mean() > GREY_SHARE)


def is_on_white(reference: UInt8[np.ndarray, "s s 3"]) -> bool:
    """Whether a square reference shows a product on white, and not a photo with a surrounding."""
    y0, x0, y1, x1 = trim_bounds(reference)
    height, width = reference.shape[:2]
    # JPEG blurs the border to white padding, hence the pixels to spare.
    if (y0 > 2 or y1 < height - 2) and (x0 > 2 or x1 < width - 2):
        return True
    crop = np.asarray((reference[y0:y1, x0:x1] >= WHITE_TOLERANCE).all(axis=-1))
    border = np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]])
    return bool(border.mean() >= WHITE_BORDER)


def _look_at(reader: Reader, split: str, item: Any) -> Seen:
    try:
        opened = reader.open(item)
    # Whatever a damaged file brings about (of shards it is RuntimeError) is what an inspection is there to find.
    except Exception as error:
        reason = str(error) if isinstance(error, InputError | RecordError) else one_line(error)
        return Seen(split, reader.name(item), item, problem=reason, findings=(BROKEN,))
    if isinstance(opened, Skipped):
        return Seen(split, reader.name(item), item, findings=(SKIPPED,))
    case, sample = opened
    size = sample.mask.shape[0]
    findings = []
    levels = sample.mask * np.uint8(255) if case is None else case.mask_levels
    if is_inverted(levels):
        findings.append(INVERTED)
    elif (levels >= 128).mean() > FULL_SHARE:
        findings.append(FULL)
    if is_grey(levels):
        findings.append(GREY)
    if not is_on_white(sample.reference):
        findings.append(NOT_WHITE)
    if case is not None and min(case.scene.shape[:2]) * 2 < size:
        findings.append(ENLARGED)
    y0, x0, y1, x1 = sample.rectangle
    if min(y1 - y0, x1 - x0) * 512 < FEW_PIXELS * size:
        findings.append(SMALL_RECTANGLE)
    scene = sample.scene if case is None else case.scene
    reference = sample.reference if case is None else case.reference
    return Seen(
        split,
        sample.id,
        item,
        findings=tuple(findings),
        scene_size=(scene.shape[0], scene.shape[1]),
        reference_size=(reference.shape[0], reference.shape[1]),
        mask_share=float(sample.mask.mean()),
        scene_look=look_of(sample.scene),
        reference_look=look_of(sample.reference),
    )


def _source_reader(kind: str, source: Source, size: int) -> Reader:
    def open_item(item: Item) -> tuple[Case | None, Sample] | Skipped:
        case = source.open(item)
        return case if isinstance(case, Skipped) else (case, make_sample(case, size))

    return Reader(kind, source.items(), open_item, source.describe(), lambda item: str(item.id))


def _record_reader(data_set: DataSet) -> Reader:
    opened = {split: open_split(data_set, split) for split in data_set.splits}

    def open_record(place: tuple[str, int]) -> tuple[Case | None, Sample]:
        return None, decode(opened[place[0]][place[1]])

    splits = {split: [(split, index) for index in range(count)] for split, count in data_set.splits.items()}
    kind = f"prepared data set {data_set.name} {data_set.version}"
    reader = Reader(kind, splits, open_record, data_set.metadata, lambda place: f"record {place[1]}")
    return reader._replace(folders=(data_set.folder,))


def _ordered(
    pool: ThreadPoolExecutor, function: Callable[[Any], Seen], items: Iterable[Any], ahead: int
) -> Iterator[Seen]:
    """The function of every item, in order, with at most `ahead` of them under way: memory stays flat."""
    queue = iter(items)
    waiting = [pool.submit(function, item) for item in islice(queue, ahead)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(function, item) for item in islice(queue, 1)]
