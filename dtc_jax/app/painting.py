"""One request's images from the pipeline, with what there is to see on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dtc_jax.app.limits import Limits, check_choices, check_results
from dtc_jax.data.images import InputError
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import SamplingChoices, resolve_sampling


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a request may choose of the sampling."""

    num_images: int = 1
    sampling: SamplingChoices
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a request is."""

    fraction: float
    """From 0 to 1: 1 only at the end."""
    text: str
    preview: UInt8[np.ndarray, "h w 3"] | None = None
    """The scene with what there is of the current image."""
    results: tuple[UInt8[np.ndarray, "h w 3"], ...] = ()
    """The images that are done."""


def paint(
    pipeline: Pipeline,
    scene: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    reference: UInt8[np.ndarray, "rh rw c"],
    choices: Choices,
    limits: Limits,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Paint the images of a request one after the other; image i of a seed is the pipeline's.

    Args:
        pipeline: the model.
        scene: RGB of any size.
        mask: {0, 1}, 1 = fill.
        reference: RGB or RGBA.
        choices: see `Choices`.
        limits: what a request may ask for and how long it may take.
        clock: seconds; for tests.

    Yields:
        Progress; the last has every image and a fraction of 1.

    Raises:
        InputError: a choice out of range, an input that cannot be used, or no time left.
    """
    steps = resolve_sampling(pipeline.config, choices.sampling).num_inference_steps
    check_choices(choices.num_images, steps, choices.seed, limits)
    check_results(choices.num_images, (scene.shape[0], scene.shape[1]), limits)
    started = clock()
    case = pipeline.prepare(scene, mask, reference)
    images = pipeline.generate(
        ((case, choices.seed, index) for index in range(choices.num_images)),
        choices.sampling,
    )
    results: tuple[np.ndarray, ...] = ()
    yield Progress(0.0, f"painting image 1 of {choices.num_images}")
    for image in images:
        results = (*results, case.put_back(image))
        done = len(results)
        if done == choices.num_images:
            break
        if clock() - started > limits.max_seconds:
            raise InputError(
                f"time: {done} of {choices.num_images} images took longer than the {limits.max_seconds:g} seconds that "
                "a request may; ask for fewer images or steps"
            )
        yield Progress(
            done / choices.num_images, f"painting image {done + 1} of {choices.num_images}", results[-1], results
        )
    yield Progress(1.0, "done", results[-1], results)
