"""Cases of an unpacked VITON-HD folder: persons and the garments that they wear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.data.builders import noface
from dtc_jax.data.builders.source import Case, Item, Skipped
from dtc_jax.data.images import InputError, read_mask_levels, read_reference, read_scene

LICENCE = "CC BY-NC 4.0: VITON-HD is for non-commercial research only, and so is what is trained on it"

HOMEPAGE = "https://github.com/shadow2496/VITON-HD"

FOLDERS = {
    "image": ("image",),
    "cloth": ("cloth",),
    "parse": ("image-parse-v3", "image-parse"),
    "agnostic": ("agnostic-mask",),
}
"""The names that copies of the data set have for each folder; the first that is there is taken."""

GARMENT = (5, 6, 7)
"""Ids of the parse map: upper clothes, dress, coat."""

CATEGORY = "upper body garment"

MaskChoice = Literal["auto", "parse", "agnostic"]


@dataclass(frozen=True, kw_only=True)
class VitonHDSource:
    """The cases of one folder: `{train,test}_pairs.txt` beside `train/` and `test/`.

    Persons are paired with the garment that they wear, whose file has their name; the second column of the pairs is for
    try-on without a truth, and is passed over.
    """

    root: str
    mask: MaskChoice = "auto"
    """Fine mask: the garment in the parse map, or the agnostic mask, which hides its shape and covers the arms. `auto`
    takes the parse map where the folder has one."""
    noface: bool = False
    """Cut faces off; see `noface.remove_face`."""

    def items(self) -> Mapping[str, Sequence[Item]]:
        """The cases by split: those of the two splits whose folder is there.

        Raises:
            InputError: names everything that is missing.
        """
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"VITON-HD folder {root}: no such folder")
        splits = [split for split in ("train", "test") if (root / split).is_dir()]
        if not splits:
            raise InputError(f"VITON-HD folder {root}: has neither train/ nor test/")
        items: dict[str, list[Item]] = {}
        for split in splits:
            folders = self._folders(split)
            items[split] = [Item(name, folders) for name in self._names(split)]
        return items

    def open(self, item: Item) -> Case | Skipped:
        """Read one person with the garment that they wear.

        Raises:
            InputError: one of the files is missing or damaged, or they do not fit together.
        """
        folders = {kind: Path(folder) for kind, folder in item.detail.items()}
        scene = read_scene(_file(folders["image"], item.id))
        reference = read_reference(_file(folders["cloth"], item.id))
        size = (scene.shape[0], scene.shape[1])
        parse = _read_parse(_file(folders["parse"], item.id), size) if "parse" in folders else None
        if parse is not None and "agnostic" not in folders:
            levels = np.isin(parse, GARMENT).astype(np.uint8) * np.uint8(255)
            if not levels.any():
                raise InputError(f"parse map of {item.id}: shows no garment (ids {', '.join(map(str, GARMENT))})")
        else:
            levels = read_mask_levels(_file(folders["agnostic"], item.id))
            if levels.shape != size:
                raise InputError(f"agnostic mask of {item.id}: is of another size than the photo")
        if self.noface and parse is not None:
            cut = noface.remove_face(scene, parse, levels)
            if isinstance(cut, Skipped):
                return cut
            scene, levels = cut.scene, cut.mask
        return Case(item.id, scene, levels, reference, CATEGORY)

    def describe(self) -> dict[str, Any]:
        """The source, where masks come from, the rule for faces, the licence."""
        rule = {
            "version": noface.VERSION,
            "margin": noface.MARGIN,
            "speck": noface.SPECK,
            "least_garment": noface.LEAST_GARMENT,
        }
        return {
            "source": "VITON-HD",
            "homepage": HOMEPAGE,
            "licence": LICENCE,
            "mask": self.mask,
            "noface": rule if self.noface else None,
        }

    def _folders(self, split: str) -> dict[str, str]:
        """The folders that are read for this split: of the two kinds of masks only what is needed."""
        folder = Path(self.root) / split
        found = {
            kind: str(folder / alias)
            for kind, aliases in FOLDERS.items()
            for alias in reversed(aliases)
            if (folder / alias).is_dir()
        }
        mask = self.mask
        if mask == "auto":
            mask = "parse" if "parse" in found else "agnostic"
        needed = ["image", "cloth", mask] + (["parse"] if self.noface and mask != "parse" else [])
        if missing := [kind for kind in needed if kind not in found]:
            names = [" or ".join(f"{alias}/" for alias in FOLDERS[kind]) for kind in missing]
            if self.mask == "auto" and "agnostic" in missing:
                names[missing.index("agnostic")] = "image-parse-v3/, image-parse/ or agnostic-mask/"
            raise InputError(f"VITON-HD folder {folder}: has no {', no '.join(names)}")
        return {kind: found[kind] for kind in needed}

    def _names(self, split: str) -> list[str]:
        pairs = Path(self.root) / f"{split}_pairs.txt"
        try:
            lines = pairs.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"VITON-HD folder: {pairs} cannot be read ({error})") from None
        persons = [line.split()[0] for line in lines if line.strip()]
        names = list(dict.fromkeys(person.removesuffix(".jpg") for person in persons))
        if not names:
            raise InputError(f"VITON-HD folder: {pairs} names no pairs")
        if wrong := [name for name in names if "/" in name or "\\" in name or name.startswith(".")]:
            raise InputError(f"VITON-HD folder: {pairs} names {wrong[0]!r}, which is no file's name")
        return names


def _file(folder: Path, name: str) -> Path:
    """The file of a person in a folder; the last candidate where there is none, so that the error names it."""
    candidates = [folder / f"{name}{ending}" for ending in ("_mask.png", ".png", ".jpg")]
    return next((path for path in candidates if path.is_file()), candidates[-1])


def _read_parse(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The ids of a parse map: a palette image's indices, not its colours."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise InputError(f"parse map {path}: is {image.mode}, not a palette image, whose indices are ids")
            ids = np.array(image)
    except FileNotFoundError:
        raise InputError(f"parse map {path}: no such file") from None
    except InputError:
        raise
    # Decoders have errors of their own on damaged files, and Pillow's for a size that cannot be is a plain Exception.
    except Exception as error:
        raise InputError(f"parse map {path}: cannot be decoded ({' '.join(str(error).split())})") from None
    if ids.shape != size:
        raise InputError(f"parse map {path}: is {ids.shape[1]}x{ids.shape[0]} pixels, the photo {size[1]}x{size[0]}")
    return ids
