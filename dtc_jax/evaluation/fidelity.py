"""Does the result show THIS product? Retrieval among 32, SSIM and PSNR in the mask, on held-out generated products.

`dtc_jax.evaluation.cases` builds the cases; here they are scored. The protocol travels with the figures, as text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32
from tqdm import tqdm

from dtc_jax.evaluation.cases import NUM_DISTRACTORS, Cases, evaluation_batch
from dtc_jax.evaluation.metrics import (
    candidate_distances,
    masked_mse,
    masked_psnr,
    masked_ssim,
    paste_back,
    retrieval_rank,
)
from dtc_jax.evaluation.report import Scores, concatenate_scores, difference, summarize


class GenerationInputs(NamedTuple):
    """What a generator gets to see of a batch of cases: host arrays, without the product's truth."""

    scene: UInt8[np.ndarray, "b h w 3"]
    """The truth with the mask's region greyed (128)."""
    mask: UInt8[np.ndarray, "b h w 1"]
    """1 = fill."""
    reference: UInt8[np.ndarray, "b r r 3"]
    """The product's photo on white."""
    seed: UInt32[np.ndarray, "b"]
    """Seed of each result's noise: the case's number."""


GenerateFn = Callable[[GenerationInputs], UInt8[np.ndarray, "b h w 3"]]
"""From a batch of cases to results; only what is inside the mask counts."""

OnBatch = Callable[[Cases, Mapping[str, np.ndarray]], None]
"""Called after every batch with the cases and each row's results, pasted back: for contact sheets."""

BASELINES = ("naive_paste", "stretched_paste")
"""Rows without a model, fields of `Cases`."""

GREY = 128
HIDDEN_TRUTH = "the scene handed to the generator is the truth with the mask's region set to grey (128)"


def hide_truth(
    scene: UInt8[np.ndarray, "*b h w 3"], mask: UInt8[np.ndarray, "*b h w 1"]
) -> UInt8[np.ndarray, "*b h w 3"]:
    """The scene with the mask's region greyed, so that nothing of the product can leak."""
    return np.where(mask > 0, np.uint8(GREY), scene)


def _unit(image: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    return image.astype(jnp.float32) / 255


@jax.jit
def score_results(
    result: UInt8[Array, "b h w 3"],
    truth: UInt8[Array, "b h w 3"],
    mask: UInt8[Array, "b h w 1"],
    easy: UInt8[Array, "b k h w 3"],
    hard: UInt8[Array, "b k h w 3"],
) -> Scores:
    """Score one batch of 8-bit results, of which only the mask's region is looked at.

    Args:
        result: what the generator made; the truth is pasted back outside the mask before SSIM.
        truth: the product in its scene.
        mask: 1 = fill.
        easy: k other products in the same scene and pose.
        hard: k products of the same silhouette, palette and pattern with another logo, in the same scene and pose.

    Returns:
        One number per case and measure.
    """

    def one(arrays: tuple[Array, ...]) -> Scores:
        shown, own, easy_row, hard_row = (_unit(array)[None] for array in (*arrays[:2], *arrays[3:]))
        inside = arrays[2].astype(jnp.float32)[None]
        pasted = paste_back(shown, own, inside)
        distance = masked_mse(pasted, own, inside)
        easy_rank = retrieval_rank(distance, candidate_distances(pasted, easy_row, inside))
        hard_rank = retrieval_rank(distance, candidate_distances(pasted, hard_row, inside))
        measures = (
            easy_rank == 0,
            hard_rank == 0,
            masked_ssim(pasted, own, inside),
            masked_psnr(pasted, own, inside),
        )
        return Scores(*(measure[0].astype(jnp.float32) for measure in measures))  # type: ignore[arg-type]

    return jax.lax.map(one, (result, truth, mask, easy, hard))


def protocol_text(num_products: int, image_size: int, seed: int) -> dict[str, Any]:
    """What was measured, and how, in words and numbers that allow to measure it again."""
    return {
        "num_products": num_products,
        "image_size": image_size,
        "seed": seed,
        "products": "held-out ids (2**31 and above), never trained on; case i and its distractors follow from the seed",
        "scenes": "drawn from keys of their own: scene, pose, light and mask kind (fine or box) are independent of ids",
        "candidates": f"own truth and {NUM_DISTRACTORS} distractors, in the same scene, pose and light, 8 bits",
        "easy_retrieval": "distractors are other held-out products",
        "hard_retrieval": "distractors share silhouette, palette, pattern, pose and scene; only the logo differs",
        "distance": "mean squared error over the mask's pixels; a tie with a distractor counts as a miss",
        "ssim": "Gaussian window 11x11, sigma 1.5, data range 1; map averaged over RGB and the mask's pixels",
        "psnr": "over the mask's pixels, dB",
        "paste_back": "outside the mask the truth is pasted back; results are rounded to 8 bits",
        "hidden_truth": HIDDEN_TRUTH,
        "intervals": "95 %, percentile bootstrap over products, 2000 resamples",
        "naive_paste": "the reference, white keyed out, in the largest rectangle inside the mask, aspect kept",
        "stretched_paste": "the reference, white keyed out, stretched over the mask's bounding box",
    }


def evaluate_fidelity(
    generate_fn: GenerateFn,
    *,
    num_products: int = 512,
    image_size: int = 64,
    reference_size: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    others: Mapping[str, GenerateFn] | None = None,
    settings: Mapping[str, Any] | None = None,
    on_batch: OnBatch | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a generator on held-out products.

    Args:
        generate_fn: called on batches of `batch_size` cases (always full: the last one's surplus is dropped).
        num_products: cases, each of another product.
        image_size: height and width of scenes in pixels.
        reference_size: height and width of references in pixels.
        batch_size: cases at a time; does not change the cases.
        seed: of the cases and of the bootstrap.
        others: further generators, by row name, on the same cases.
        settings: stored under `settings` (checkpoint, solver, steps, guidance...).
        on_batch: see `OnBatch`.
        progress: show a progress bar where stderr is a terminal.

    Returns:
        A dict that JSON can hold: `protocol`, `settings`, `rows` (name -> `report.summarize`; `model`, the others,
        `BASELINES`), `model_minus` (name -> the same of paired differences), `device`, `seconds`.

    Raises:
        ValueError: num_products or batch_size below 1, or a result of the wrong shape or type.
    """
    if num_products < 1 or batch_size < 1:
        raise ValueError(f"num_products = {num_products} and batch_size = {batch_size} must be at least 1")
    generators = {"model": generate_fn, **(others or {})}
    parts: dict[str, list[Scores]] = {name: [] for name in (*generators, *BASELINES)}
    seconds = dict.fromkeys(generators, 0.0)
    is_box: list[Bool[np.ndarray, "b"]] = []
    started = time.perf_counter()
    for start in tqdm(
        range(0, num_products, batch_size), desc="evaluating", unit="batch", disable=None if progress else True
    ):
        kept = min(batch_size, num_products - start)
        cases = evaluation_batch(start, batch_size, seed=seed, image_size=image_size, reference_size=reference_size)
        inputs = GenerationInputs(
            scene=hide_truth(cases.truth, cases.mask), mask=cases.mask, reference=cases.reference, seed=cases.case
        )
        results: dict[str, np.ndarray] = {}
        for name, generate in generators.items():
            begun = time.perf_counter()
            results[name] = np.asarray(generate(inputs))
            seconds[name] += time.perf_counter() - begun
            if results[name].shape != cases.truth.shape or results[name].dtype != np.uint8:
                raise ValueError(
                    f"{name}: results are {results[name].dtype} {results[name].shape}, not uint8 {cases.truth.shape}"
                )
        results |= {name: getattr(cases, name) for name in BASELINES}
        for name, result in results.items():
            scores = score_results(result, cases.truth, cases.mask, cases.easy, cases.hard)
            parts[name].append(Scores(*(np.asarray(values, np.float64)[:kept] for values in scores)))
        is_box.append(cases.is_box[:kept])
        if on_batch is not None:
            pasted = {name: np.where(cases.mask > 0, result, cases.truth) for name, result in results.items()}
            on_batch(cases, pasted)
    scores_of = {name: concatenate_scores(rows) for name, rows in parts.items()}
    box = np.concatenate(is_box)
    return {
        "protocol": protocol_text(num_products, image_size, seed),
        "settings": dict(settings or {}),
        "rows": {name: summarize(scores, box, seed) for name, scores in scores_of.items()},
        "model_minus": {
            name: summarize(difference(scores_of["model"], scores), box, seed)
            for name, scores in scores_of.items()
            if name != "model"
        },
        "device": describe_device(),
        "seconds": {"total": time.perf_counter() - started, "generation": seconds},
    }


def describe_device() -> str:
    """The devices that JAX computes on, in a few words."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
