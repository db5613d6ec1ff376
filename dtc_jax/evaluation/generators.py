"""A loaded model as a generator of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from dtc_jax.config import BoxOutline
from dtc_jax.data.outline import is_box
from dtc_jax.data.window import Window
from dtc_jax.evaluation.fidelity import GenerateFn, GenerationInputs
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import Prepared, stitched_batch
from dtc_jax.inference.settings import CHECKPOINTS_OWN, SamplingChoices, resolve_sampling


def prepare_whole_scene(
    pipeline: Pipeline, inputs: GenerationInputs, box_outline: BoxOutline = "model"
) -> Iterator[Prepared]:
    """The cases as the model takes them: scenes at the model's own size are neither cut nor resized."""
    hint = pipeline.config.model.hint
    size = pipeline.config.model.image_size
    for scene, mask, reference in zip(inputs.scene, inputs.mask, inputs.reference, strict=True):
        region = mask[..., 0]
        hole = region if box_outline == "reference" and is_box(region) else None
        batch, outline = stitched_batch(scene, region, reference, hint, hole)
        yield Prepared({**batch, "reference": reference}, scene, region, Window(0, 0, size), outline)


def pipeline_generator(pipeline: Pipeline, choices: SamplingChoices = CHECKPOINTS_OWN) -> GenerateFn:
    """The generator that samples with this pipeline.

    Every result's noise follows from its seed alone, so that several models are compared on the same noise.
    """

    box_outline = resolve_sampling(pipeline.config, choices).box_outline

    def generate(inputs: GenerationInputs) -> UInt8[np.ndarray, "b h w 3"]:
        cases = list(prepare_whole_scene(pipeline, inputs, box_outline))
        images = pipeline.generate(
            ((case, int(seed), 0) for case, seed in zip(cases, inputs.seed, strict=True)),
            choices,
            batch_size=len(cases),
        )
        return np.stack([case.put_back(image) for case, image in zip(cases, images, strict=True)])

    return generate


def describe_settings(pipeline: Pipeline, choices: SamplingChoices = CHECKPOINTS_OWN) -> dict[str, Any]:
    """How `pipeline_generator` samples with the same arguments, for the protocol.

    Raises:
        InputError: a choice out of range.
    """
    sampling = resolve_sampling(pipeline.config, choices)
    solver = f"DDIM (eta {sampling.eta:g}, " if sampling.solver == "ddim" else "DPM-Solver++ 2M ("
    return {
        "experiment": pipeline.config.name,
        "solver": f"{solver}{sampling.timestep_spacing} timesteps)",
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_rescale": sampling.guidance_rescale,
        "guidance_interval": sampling.guidance_interval,
        "unconditional": sampling.unconditional,
        "box_outline": sampling.box_outline,
        "dtype": jnp.dtype(pipeline.dtype).name,
    }
