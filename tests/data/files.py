"""Small data sets on disk: pictures that can be told apart, a catalogue with a manifest, a folder like VITON-HD's."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(seed: int, height: int = 60, width: int = 48) -> np.ndarray:
    """A smooth photo of its own colours: JPEG changes it little, and no two look the same."""
    small = np.random.default_rng(seed).integers(20, 236, (5, 4, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def mask(height: int = 60, width: int = 48) -> np.ndarray:
    """An L, 0 and 255: largest rectangle and bounding box differ."""
    levels = np.zeros((height, width), np.uint8)
    levels[20:44, 14:24] = 255
    levels[38:44, 14:36] = 255
    return levels


def product(seed: int, side: int = 40) -> np.ndarray:
    """A product on white with a margin, four patches of its own colours."""
    image = np.full((side, side, 3), 255, np.uint8)
    colours = np.random.default_rng(1000 + seed).integers(0, 200, (2, 2, 3), np.uint8)
    image[6:34, 8:32] = colours.repeat(14, axis=0).repeat(12, axis=1)
    return image


def save(path: Path, image: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def write_catalogue(folder: Path, count: int = 6, test: int = 2) -> Path:
    """A manifest of `count` cases, the last `test` of them for testing, and its pictures."""
    lines = []
    for number in range(count):
        save(folder / "scenes" / f"{number}.png", photo(number))
        save(folder / "masks" / f"{number}.png", mask())
        save(folder / "products" / f"{number}.png", product(number))
        entry = {
            "id": f"case-{number}",
            "scene": f"scenes/{number}.png",
            "mask": f"masks/{number}.png",
            "reference": f"products/{number}.png",
            "category": "chair",
            "split": "train" if number < count - test else "test",
        }
        lines.append(entry)
    return write_manifest(folder / "catalogue.jsonl", lines)


def read_lines(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def write_manifest(manifest: Path, lines: list[dict[str, Any]]) -> Path:
    manifest.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return manifest


def parse_map(height: int = 100, width: int = 60, face: tuple[int, int] = (4, 20)) -> np.ndarray:
    """Ids of a person: hair, face in the rows `face`, neck, garment, arms, trousers."""
    ids = np.zeros((height, width), np.uint8)
    ids[2 : face[1], 18:42] = 2
    ids[face[0] : face[1], 22:38] = 13
    ids[face[1] : face[1] + 4, 26:34] = 10
    ids[26:70, 18:42] = 5
    ids[28:66, 10:18] = 14
    ids[70:, 20:40] = 9
    return ids


def say_huge(path: Path) -> None:
    """Make a PNG's header say 60000 x 60000 pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def save_parse(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids, mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def write_vitonhd(folder: Path, train: int = 3, test: int = 2, parse_folder: str = "image-parse-v3") -> Path:
    """An unpacked VITON-HD with parse maps and agnostic masks, 100x60 pixels."""
    first = 0
    for split, count in (("train", train), ("test", test)):
        names = [f"{number:05d}_00" for number in range(first, first + count)]
        for number, name in enumerate(names, start=first):
            save(folder / split / "image" / f"{name}.jpg", photo(number, 100, 60), quality=95, subsampling=0)
            save(folder / split / "cloth" / f"{name}.jpg", product(number), quality=95, subsampling=0)
            save_parse(folder / split / parse_folder / f"{name}.png", parse_map())
            agnostic = np.zeros((100, 60, 3), np.uint8)
            agnostic[24:72, 8:50] = 255
            save(folder / split / "agnostic-mask" / f"{name}_mask.png", agnostic)
        others = names[1:] + names[:1]
        pairs = "".join(f"{a}.jpg {b}.jpg\n" for a, b in zip(names, others, strict=True))
        (folder / f"{split}_pairs.txt").write_text(pairs)
        first += count
    return folder
