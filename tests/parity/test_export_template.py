"""The code that exported folders bring along, piece by piece against ours: images to arrays and back, DDIM's steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.utils import dynamic_modules_utils
from PIL import Image

from dtc_jax import presets
from dtc_jax.config import BoxOutline, DiffusionConfig, HintConfig, ModelConfig, SamplingConfig
from dtc_jax.data.hints import Fit
from dtc_jax.data.images import read_mask, read_reference, read_scene
from dtc_jax.diffusion import (
    DDIM,
    DPMSolverMultistep,
    classifier_free_guidance,
    guided_timesteps,
    make_schedule,
    rescale_guidance,
    sample,
)
from dtc_jax.inference.prepare import prepare
from dtc_jax.weights.export_pytorch.code_files import PIPELINE_FILES
from dtc_jax.weights.export_pytorch.networks import scheduler_config


def test_pipeline_imports_every_file_beside_it(template: ModuleType) -> None:
    """diffusers copies what pipeline.py itself imports into its cache of modules, and nothing that those import."""
    (folder,) = (Path(path) for path in template.__path__)
    imported = dynamic_modules_utils.get_relative_imports(folder / "pipeline.py")
    assert sorted(imported) == sorted(path.stem for path in folder.glob("dtc_*.py"))
    assert {"pipeline.py", *(f"{name}.py" for name in imported)} == set(PIPELINE_FILES)


def assert_almost_equal_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    """Sums in another order may round a value that lies half-way to the next level, here and there."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and np.count_nonzero(difference) <= max(2, 1e-3 * difference.size)


def assert_equal_case(
    template: ModuleType,
    photo: np.ndarray,
    mask: np.ndarray,
    reference: np.ndarray,
    model: ModelConfig,
    feather: int,
    box_outline: BoxOutline = "model",
) -> None:
    ours = prepare(photo, mask, reference, model, 0.65, box_outline=box_outline)
    assert (ours.outline is not None) == (box_outline == "reference")
    hint = model.hint
    theirs = template.dtc_preprocessing.prepare(
        photo,
        mask,
        reference,
        size=model.image_size,
        reference_size=model.reference_encoder.image_size,
        fit=hint.fit,
        region=hint.region,
        trim=hint.trim,
        context=0.65,
        box_outline=box_outline,
    )
    np.testing.assert_array_equal(theirs.mask, ours.batch["mask"][..., 0])
    for name in ("reference", "hint"):
        np.testing.assert_array_equal(getattr(theirs, name), ours.batch[name], err_msg=name)
    assert_almost_equal_pixels(theirs.scene, ours.batch["scene"])
    generated = np.random.default_rng(1).random((model.image_size, model.image_size, 3), np.float32)
    result = template.dtc_preprocessing.put_back(theirs, generated, feather)
    assert_almost_equal_pixels(result, ours.put_back(generated, feather))
    assert (result[mask == 0] == photo[mask == 0]).all()


@pytest.mark.parametrize("seed", range(8))
def test_preprocessing_is_ours(seed: int, template: ModuleType) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(40, 400, 2)
    photo = np.asarray(Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height)))
    mask = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    center_y, center_x = random.integers(5, height - 5), random.integers(5, width - 5)
    radius = random.integers(3, 3 + min(height, width) // (1 + seed % 3))
    mask[(y - center_y) ** 2 + ((x - center_x) / 1.5) ** 2 < radius**2] = 1
    reference = np.full((*random.integers(30, 300, 2), 3 + seed % 2), 255, np.uint8)
    if seed >= 4:  # a studio backdrop
        reference[..., :3] = 225 + 20 * np.mgrid[: reference.shape[0], : reference.shape[1]][0][..., None] // 300
    reference[5:20, 8:25] = random.integers(0, 200, (15, 17, reference.shape[-1]), dtype=np.uint8)
    hint = (
        HintConfig(fit="stretch", region="bounding_box", trim=False, adapter_channels=(4, 4, 8))
        if seed % 2
        else HintConfig(adapter_channels=(4, 4, 8))
    )
    base = presets.test()
    model = ModelConfig(
        image_size=64, unet=base.unet, vae=base.vae, reference_encoder=base.reference_encoder, vgg=base.vgg, hint=hint
    )
    assert_equal_case(template, photo, mask, reference, model, feather=3 * (seed % 3))


@pytest.mark.parametrize("fit", ["contain", "stretch"])
@pytest.mark.parametrize("channels", [3, 4])
def test_outlines_in_boxes_are_ours(fit: Fit, channels: int, template: ModuleType) -> None:
    random = np.random.default_rng(channels)
    photo = np.asarray(Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((210, 160)))
    mask = np.zeros((160, 210), np.uint8)
    mask[30:130, 50:140] = 1
    y, x = np.mgrid[:90, :70]
    product = ((y - 40) / 30) ** 2 + ((x - 30) / 25) ** 2 < 1
    reference = np.where(product[..., None], random.integers(0, 200, (90, 70, 4)), 255).astype(np.uint8)
    reference[..., 3] = product * np.uint8(255)
    base = presets.test()
    model = replace(base, image_size=64, hint=replace(base.hint, fit=fit, region="bounding_box"))
    assert_equal_case(template, photo, mask, reference[..., :channels], model, feather=2, box_outline="reference")
    with pytest.raises(ValueError, match="box_outline must be model or reference, not 'both'"):
        template.dtc_preprocessing.prepare(
            photo,
            mask,
            reference,
            size=64,
            reference_size=16,
            fit=fit,
            region="bounding_box",
            trim=True,
            context=0.65,
            box_outline="both",
        )


def test_real_files_are_read_as_ours(template: ModuleType, real_inputs: Path) -> None:
    for case in json.loads((real_inputs / "cases.json").read_text())["cases"][:8]:
        scene, mask, reference = (real_inputs / case[field] for field in ("scene", "mask", "reference"))
        photo = template.dtc_images.read_scene(Image.open(scene))
        np.testing.assert_array_equal(photo, read_scene(scene))
        region = template.dtc_images.read_mask(Image.open(mask), photo.shape[:2])
        np.testing.assert_array_equal(region, read_mask(mask))
        product = template.dtc_images.read_reference(reference)
        np.testing.assert_array_equal(product, read_reference(reference))
        assert_equal_case(template, photo, region, product, presets.test(), feather=2)
    for path in sorted((real_inputs / "odd-inputs").glob("*.[jpt]*[gf]")):
        np.testing.assert_array_equal(template.dtc_images.read_scene(path), read_scene(path), err_msg=path.name)
        np.testing.assert_array_equal(template.dtc_images.read_reference(path), read_reference(path), err_msg=path.name)


def test_wrong_inputs_are_refused(template: ModuleType) -> None:
    images = template.dtc_images
    with pytest.raises(ValueError, match="mask: is 4x5 pixels, the scene 6x5"):
        images.read_mask(Image.new("L", (4, 5), 255), (5, 6))
    with pytest.raises(ValueError, match="empty"):
        images.read_mask(Image.new("L", (4, 5), 127), (5, 4))
    with pytest.raises(ValueError, match="needs 0 <= x0"):
        images.read_box((3, 0, 2, 4), (8, 8))
    with pytest.raises(ValueError, match="transparent"):
        images.read_reference(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))


def make_scheduler(diffusion: DiffusionConfig, sampling: SamplingConfig) -> Any:
    config = scheduler_config(diffusion, sampling)
    return getattr(diffusers, config["_class_name"]).from_config(config)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_steps_are_ours(kind: str, spacing: str, template: ModuleType) -> None:
    """Seven steps, which do not divide a thousand, of a network that is a formula."""
    diffusion = DiffusionConfig(prediction_type=kind)  # type: ignore[arg-type]
    config = scheduler_config(diffusion, SamplingConfig(timestep_spacing=spacing))  # type: ignore[arg-type]
    scheduler = diffusers.DDIMScheduler.from_config(config)
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    ours = sample(
        lambda latents, t, _: (jnp.tanh(latents) * 0.8 + t / 3000, None),
        make_schedule(),
        DDIM(),
        kind,  # type: ignore[arg-type]
        noise,
        jax.random.key(0),
        num_inference_steps=7,
        spacing=spacing,  # type: ignore[arg-type]
    )
    steps = template.dtc_sampler.DDIMSteps(scheduler, 7, torch.device("cpu"), 0.0)
    latents = torch.from_numpy(noise)
    for index, t in enumerate(steps.timesteps):
        latents = steps.step(index, torch.tanh(latents) * 0.8 + t / 3000, latents)
    np.testing.assert_allclose(latents.numpy(), ours, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_steps_of_dpm_solver_are_ours(spacing: str) -> None:
    """The exported scheduler alone, over 17 steps."""
    scheduler = make_scheduler(
        DiffusionConfig(prediction_type="v_prediction"),
        SamplingConfig(solver="dpmsolver++", timestep_spacing=spacing),  # type: ignore[arg-type]
    )
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    ours = sample(
        lambda latents, t, _: (jnp.tanh(latents) * 0.8 + t / 3000, None),
        make_schedule(),
        DPMSolverMultistep(),
        "v_prediction",
        noise,
        jax.random.key(0),
        num_inference_steps=17,
        spacing=spacing,  # type: ignore[arg-type]
    )
    scheduler.set_timesteps(17)
    latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(latents, t)) * 0.8 + t / 3000
        latents = scheduler.step(output, t, latents).prev_sample
    # diffusers multiplies its thousand alphas in float32.
    np.testing.assert_allclose(latents.numpy(), ours, rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
def test_guidance_is_ours(solver: str, template: ModuleType) -> None:
    sampling = SamplingConfig(solver=solver)  # type: ignore[arg-type]
    scheduler = make_scheduler(DiffusionConfig(), sampling)
    conditional, unconditional = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
    pair = [torch.from_numpy(x) for x in (conditional, unconditional)]
    guided = classifier_free_guidance(conditional, unconditional, 3.0)
    np.testing.assert_allclose(template.dtc_sampler.guide(*pair, 3.0, 0.0), guided, atol=1e-6)
    rescaled = rescale_guidance(guided, conditional, 0.7)
    np.testing.assert_allclose(template.dtc_sampler.guide(*pair, 3.0, 0.7), rescaled, atol=1e-5)
    timesteps = np.arange(0, 1000, 37)
    for interval in [(0.28, 5.42), (0.0, float("inf")), (20.0, 30.0)]:
        theirs = [template.dtc_sampler.is_guided(scheduler, torch.tensor(t), list(interval)) for t in timesteps]
        assert theirs == guided_timesteps(make_schedule(), timesteps, interval).tolist()
    assert template.dtc_sampler.is_guided(scheduler, torch.tensor(999), None)
