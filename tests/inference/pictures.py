"""Small pictures and manifests in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 30, 42


def write_pictures(folder: Path, scenes: int = 1, references: int = 1) -> None:
    """scene-N.png, product/N.png, and mask.png."""
    random = np.random.default_rng(0)
    for number in range(scenes):
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"scene-{number}.png")
    (folder / "products").mkdir()
    for number in range(references):
        pixels = random.integers(0, 240, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "products" / f"{number}.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:22, 10:30] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def entry(name: str, scene: int = 0, reference: int = 0, **changes: object) -> dict[str, object]:
    """A line of a manifest."""
    files = {"scene": f"scene-{scene}.png", "mask": "mask.png", "reference": f"products/{reference}.png"}
    return {"id": name, **files, **changes}


def write_manifest(folder: Path, *entries: dict[str, object]) -> str:
    """cases.jsonl."""
    path = folder / "cases.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    return str(path)


def pixels(path: Path) -> np.ndarray:
    """What is in a file."""
    with Image.open(path) as image:
        return np.array(image)
