"""One request's images from the pipeline, with what there is to see on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from dtc_jax.app.limits import Limits, check_choices, check_results
from dtc_jax.data.images import InputError
from dtc_jax.inference.generate import generate_with_previews, image_keys
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import SamplingChoices, resolve_sampling, sampler_settings

PREVIEWS = 8
"""Of each image, about."""


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
    """Paint the images of a request one after the other; image i of a seed is the pipeline's, up to rounding.

    Who stops iterating stops the sampling.

    Args:
        pipeline: the model.
        scene: RGB of any size.
        mask: {0, 1}, 1 = fill; where it has several parts, the product goes into each.
        reference: RGB or RGBA.
        choices: see `Choices`.
        limits: what a request may ask for and how long it may take.
        clock: seconds; for tests.

    Yields:
        Progress; the last has every image and a fraction of 1.

    Raises:
        InputError: a choice out of range, an input that cannot be used, or no time left.
    """
    sampling = resolve_sampling(pipeline.config, choices.sampling)
    steps, count = sampling.num_inference_steps, choices.num_images
    check_choices(count, steps, choices.seed, limits)
    check_results(count, (scene.shape[0], scene.shape[1]), limits)
    settings = sampler_settings(pipeline.config, choices.sampling, pipeline.dtype)
    scale = jnp.float32(sampling.guidance_scale)
    every = max(1, steps // PREVIEWS)
    started = clock()
    case = pipeline.prepare_regions(scene, mask, reference, box_outline=sampling.box_outline)
    parts = len(case.regions)
    results: tuple[np.ndarray, ...] = ()
    yield Progress(0.0, f"image 1 of {count}")
    for index in range(count):
        generated: list[np.ndarray] = []
        for part, region in enumerate(case.regions):
            batch = {name: jnp.asarray(array[None]) for name, array in region.batch.items()}
            keys = image_keys(choices.seed, 1, first=index)
            for step, images in generate_with_previews(pipeline.params, batch, keys, scale, settings, every):
                image = np.asarray(images)[0]
                done = (index * parts + part + step / steps) / (count * parts)
                if done < 1 and clock() - started > limits.max_seconds:
                    raise InputError(
                        f"time: after the {limits.max_seconds:g} seconds that a request may take, "
                        f"{100 * done:.0f} % of it was done; ask for fewer images or steps"
                    )
                if step == steps:
                    generated.append(image)
                else:
                    yield Progress(done, f"image {index + 1} of {count}", region.put_back(image), results)
        results = (*results, case.put_back(generated))
        yield Progress((index + 1) / count, f"image {min(index + 2, count)} of {count}", results[-1], results)
