"""Committed examples: held-out cases of the procedural world as files, made again from their numbers to be scored.

An example's scene is its truth with the mask's region set to grey, so that nothing of the product leaks; everything
outside the mask, the product's shadow there included, is as in the truth.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from dtc_jax.data.images import InputError, read_scene, write_image
from dtc_jax.data.manifest import Case, read_manifest
from dtc_jax.data.procedural.scene import MASK_KINDS
from dtc_jax.data.procedural.silhouettes import NAMES
from dtc_jax.evaluation.cases import Cases, case_product, case_scene, make_cases
from dtc_jax.evaluation.fidelity import hide_truth

EXAMPLES_SEED = 2047
"""Seed of the committed examples' cases: none of them is among an evaluation's with another seed."""
MANIFEST_FILE = "manifest.jsonl"

_TOLERANCE = 1.0
"""Mean difference, of 255, that another machine's rounding may make between a file and its case made again."""


def choose_examples(count: int, seed: int = EXAMPLES_SEED) -> dict[int, str]:
    """The first cases whose silhouettes all differ, fine masks first and then box masks, half each.

    Args:
        count: at most the number of silhouettes.

    Returns:
        Names of silhouettes by number of case; chosen by product and mask alone, before any model has seen them.

    Raises:
        ValueError: more examples than silhouettes.
    """
    if not 1 <= count <= len(NAMES):
        raise ValueError(f"there can be 1 to {len(NAMES)} examples, one for each silhouette, not {count}")
    chosen: dict[str, dict[int, str]] = {"fine": {}, "box": {}}
    wanted = {"fine": count - count // 2, "box": count // 2}
    seen: set[str] = set()
    silhouettes, kinds = jax.device_get(_describe_cases(np.uint32(seed)))
    for index, (silhouette, mask_kind) in enumerate(zip(silhouettes, kinds, strict=True)):
        name, kind = NAMES[silhouette], MASK_KINDS[mask_kind]
        if len(chosen[kind]) < wanted[kind] and name not in seen:
            seen.add(name)
            chosen[kind][index] = name
    return {**chosen["fine"], **chosen["box"]}


@jax.jit
def _describe_cases(seed: UInt32[Any, ""]) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """Silhouette and kind of mask of the first cases: plenty to find every silhouette in."""

    def describe(index: UInt32[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        return case_product(index, seed).silhouette, case_scene(index, seed).mask_kind

    return jax.vmap(describe)(jnp.arange(1024, dtype=jnp.uint32))


def write_examples(folder: Path, count: int = 16, image_size: int = 64, seed: int = EXAMPLES_SEED) -> Path:
    """Write the examples: for each a folder with scene, mask, reference and truth, and one manifest.

    The manifest's `seed` is the case's number, and also the seed of its noise when it is sampled.

    Returns:
        The manifest.

    Raises:
        InputError: a file that cannot be written.
    """
    chosen = choose_examples(count, seed)
    cases = make_cases(list(chosen), seed=seed, image_size=image_size, reference_size=image_size)
    lines: list[str] = []
    for i, (index, silhouette) in enumerate(chosen.items()):
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
    _remove_stale(folder, {json.loads(line)["id"] for line in lines})
    manifest = folder / MANIFEST_FILE
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def _remove_stale(folder: Path, current: set[str]) -> None:
    """Remove folders that the old manifest lists and the new one does not."""
    manifest = folder / MANIFEST_FILE
    old = {example.id for example in read_manifest(manifest)} if manifest.is_file() else set()
    for name in old - current:
        shutil.rmtree(folder / name)


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
