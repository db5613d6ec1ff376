"""Committed examples: held-out cases of the procedural world as files, made again from their numbers to be scored.

An example's scene is its truth with the mask's region set to grey, so that nothing of the product leaks; everything
outside the mask, the product's shadow there included, is as in the truth.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dtc_jax.data.procedural.scene import MASK_KINDS
from dtc_jax.data.procedural.silhouettes import NAMES
from dtc_jax.evaluation.cases import Cases, case_product, case_scene, make_cases
from dtc_jax.evaluation.fidelity import hide_truth
from dtc_jax.inference.images import InputError, read_scene, write_image
from dtc_jax.inference.manifest import Case

EXAMPLES_SEED = 2047
"""Seed of the committed examples' cases: none of them is among an evaluation's with another seed."""
MANIFEST_FILE = "manifest.jsonl"

_TOLERANCE = 1.0
"""Mean difference, of 255, that another machine's rounding may make between a file and its case made again."""


def choose_examples(count: int, seed: int = EXAMPLES_SEED) -> list[int]:
    """The first cases whose silhouettes all differ, fine masks first and then box masks, half each.

    Args:
        count: at most the number of silhouettes.

    Returns:
        Numbers of cases; chosen by product and mask alone, before any model has seen them.

    Raises:
        ValueError: more examples than silhouettes.
    """
    if not 1 <= count <= len(NAMES):
        raise ValueError(f"there can be 1 to {len(NAMES)} examples, one for each silhouette, not {count}")
    wanted = {"fine": count - count // 2, "box": count // 2}
    chosen: dict[str, list[int]] = {kind: [] for kind in wanted}
    seen: set[int] = set()
    pool = np.arange(64 * count, dtype=np.uint32)
    silhouettes = np.asarray(jax.jit(jax.vmap(lambda i: case_product(i, seed).silhouette))(pool))
    kinds = np.asarray(jax.jit(jax.vmap(lambda i: case_scene(i, seed).mask_kind))(pool))
    for index in pool.tolist():
        kind = MASK_KINDS[kinds[index]]
        if len(chosen[kind]) < wanted[kind] and silhouettes[index] not in seen:
            seen.add(silhouettes[index])
            chosen[kind].append(index)
    return chosen["fine"] + chosen["box"]


def write_examples(folder: Path, count: int = 16, image_size: int = 64, seed: int = EXAMPLES_SEED) -> Path:
    """Write the examples: for each a folder with scene, mask, reference and truth, and one manifest.

    The manifest's `seed` is the case's number, and also the seed of its noise when it is sampled.

    Returns:
        The manifest.

    Raises:
        InputError: a file that cannot be written.
    """
    indices = choose_examples(count, seed)
    cases = make_cases(indices, seed=seed, image_size=image_size, reference_size=image_size)
    lines: list[str] = []
    for i, index in enumerate(indices):
        silhouette = NAMES[int(case_product(index, seed).silhouette)]
        kind = "box" if cases.is_box[i] else "fine"
        name = f"{i:02d}-{silhouette}-{kind}"
        images = {
            "scene": hide_truth(cases.truth[i], cases.mask[i]),
            "mask": np.repeat(cases.mask[i] * np.uint8(255), 3, axis=-1),
            "reference": cases.reference[i],
            "truth": cases.truth[i],
        }
        entry: dict[str, Any] = {"id": name}
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"examples {folder}: cannot be made ({error.strerror})") from None
        for part, image in images.items():
            write_image(folder / name / f"{part}.png", image)
            entry[part] = f"{name}/{part}.png"
        lines.append(json.dumps({**entry, "category": silhouette, "split": "held_out", "seed": index}))
    manifest = folder / MANIFEST_FILE
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def example_cases(examples: Sequence[Case], image_size: int = 64, seed: int = EXAMPLES_SEED) -> Cases:
    """The examples made again from their numbers, with the distractors that files do not hold.

    Returns:
        Host arrays; `truth` as made again.

    Raises:
        InputError: an example without number or truth, or one that is not what its number makes.
    """
    for example in examples:
        if example.seed is None or example.truth is None:
            raise InputError(f"{example.where}: an example needs 'truth' and 'seed' (the number of its case)")
    indices = [example.seed for example in examples if example.seed is not None]
    try:
        cases = make_cases(indices, seed=seed, image_size=image_size, reference_size=image_size)
    except ValueError as error:
        raise InputError(f"{examples[0].where}: {error}") from None
    for example, truth in zip(examples, cases.truth, strict=True):
        stored = read_scene(str(example.truth))
        if stored.shape != truth.shape or np.abs(stored.astype(np.float32) - truth).mean() > _TOLERANCE:
            raise InputError(
                f"{example.truth}: is not what this version makes of case {example.seed}; "
                "write the examples again with: python -m dtc_jax.demo --regenerate"
            )
    return cases
