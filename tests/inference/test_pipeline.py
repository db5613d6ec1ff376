"""The jitted sampler against a loop written out, and the pipeline's promises."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtc_jax
from dtc_jax.config import SamplingConfig
from dtc_jax.data.images import InputError, read_scene, write_image
from dtc_jax.data.manifest import Case
from dtc_jax.diffusion import DDIM, DPMSolverMultistep, scaled_linear_schedule
from dtc_jax.inference.generate import generate, generate_jit, generate_with_previews, image_keys
from dtc_jax.inference.jobs import Job
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.run_jobs import RunOptions, run_jobs
from dtc_jax.inference.settings import SamplingChoices, resolve_sampling, sampler_settings
from dtc_jax.inference.stages import advance, encode_reference, steps_of
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import ModelFolderError, load_model_folder, save_model_folder


def _case(seed: int = 0, height: int = 37, width: int = 51) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scene = random.integers(0, 256, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[9:30, 12:40] = 1
    mask[9:15, 12:20] = 0
    return scene, mask, random.integers(0, 240, (30, 20, 3), np.uint8)


def _batch(pipeline: Pipeline, *seeds: int) -> dict[str, np.ndarray]:
    cases = [pipeline.prepare(*_case(seed)).batch for seed in seeds]
    return {name: np.stack([case[name] for case in cases]) for name in cases[0]}


def test_generate_equals_the_loop_written_out(pipeline: Pipeline) -> None:
    config, model = pipeline.config, DiffuseToChoose(pipeline.config.model)
    batch, keys, scale = _batch(pipeline, 0), image_keys(5, 1), 2.0
    abar = scaled_linear_schedule().alphas_cumprod

    @jax.jit
    def written_out(params: dict) -> jax.Array:
        scene, mask = batch["scene"] / 127.5 - 1.0, batch["mask"].astype(np.float32)
        masked = model.encode_images(params, jnp.asarray(scene * (1 - mask), jnp.float32))
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        tokens = model.encode_reference(params, jnp.asarray((batch["reference"] / 255 - mean) / std, jnp.float32))
        null = jnp.broadcast_to(params["null_tokens"]["embedding"], tokens.shape)
        hint = jnp.asarray(batch["hint"] / 255, jnp.float32)
        noise_key, _ = jax.random.split(keys[0])
        latents = jax.random.normal(noise_key, masked.shape[1:])[None]
        for timestep, previous in [(501, 1), (1, -1)]:
            outputs = []
            for context in (tokens, null):
                times = jnp.array([timestep])
                features = model.hint_features(params, hint, masked, times, context)
                modulations = model.modulations(params, features)
                small = mask[:, ::2, ::2]
                outputs.append(model.predict(params, latents, small, masked, times, context, modulations))
            noise = outputs[1] + scale * (outputs[0] - outputs[1])
            x0 = (latents - np.sqrt(1 - abar[timestep]) * noise) / np.sqrt(abar[timestep])
            alpha = abar[previous] if previous >= 0 else abar[0]
            latents = np.sqrt(alpha) * x0 + np.sqrt(1 - alpha) * noise
        return jnp.clip((model.decode_latents(params, latents) + 1) / 2, 0, 1)

    found = generate_jit(pipeline.params, batch, keys, jnp.float32(scale), sampler_settings(config))
    assert found.shape == (1, 16, 16, 3) and found.dtype == jnp.float32
    assert float(found.std()) > 0, "a constant image proves nothing"
    np.testing.assert_allclose(found, written_out(pipeline.params), atol=2e-4)


def test_an_image_does_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    cases = [(pipeline.prepare(*_case(seed)), 7, seed) for seed in range(3)]
    alone = list(pipeline.generate(cases))
    together = list(pipeline.generate(cases, batch_size=2))
    assert len(together) == 3
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=2e-4)


def test_images_of_one_case_share_what_is_before_the_loop(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def spy(params: Any, batch: dict[str, np.ndarray], keys: jax.Array, *rest: Any) -> jax.Array:
        rows.append((len(batch["hint"]), len(keys)))
        return generate_jit(params, batch, keys, *rest)

    monkeypatch.setattr("dtc_jax.inference.pipeline.generate_jit", spy)
    one, other = pipeline.prepare(*_case(0)), pipeline.prepare(*_case(1))
    wanted = [(one, 7, 0), (one, 7, 1), (one, 7, 2), (other, 7, 0)]
    together = list(pipeline.generate(wanted, batch_size=2))
    assert rows == [(1, 2), (2, 2)]
    alone = [image for case in wanted for image in pipeline.generate([case])]
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=2e-4)


def test_memory_that_compiling_freed_is_given_back_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr("dtc_jax.inference.pipeline.release_freed_memory", lambda: calls.append(None))
    cases = [(pipeline.prepare(*_case(seed)), 7, seed) for seed in range(3)]
    assert len(list(pipeline.generate(cases))) == 3
    assert len(calls) == 1


@pytest.mark.parametrize("size", [(37, 51), (64, 33)])
def test_nothing_outside_the_mask_changes(pipeline: Pipeline, size: tuple[int, int]) -> None:
    scene, mask, reference = _case(1, *size)
    result = pipeline(scene, mask, reference)[0]
    assert result.shape == scene.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(result[mask == 0], scene[mask == 0])
    assert (result[mask == 1] != scene[mask == 1]).any(axis=-1).mean() > 0.9


def test_seeds(pipeline: Pipeline) -> None:
    scene, mask, reference = _case()
    three = pipeline(scene, mask, reference, seed=3, num_images=3)
    assert (three[0] != three[1]).any() and (three[1] != three[2]).any()
    np.testing.assert_array_equal(three[0], pipeline(scene, mask, reference, seed=3)[0])
    assert (three[0] != pipeline(scene, mask, reference, seed=4)[0]).any()


def test_feather_of_the_pipeline(pipeline: Pipeline) -> None:
    scene, mask, reference = _case(2, 80, 90)
    hard = pipeline(scene, mask, reference, feather=0)[0]
    soft = pipeline(scene, mask, reference)[0]
    assert pipeline.prepare(scene, mask, reference).window.side // 16 == 2, "the result is enlarged"
    np.testing.assert_array_equal(soft, pipeline(scene, mask, reference, feather=2)[0])
    np.testing.assert_array_equal(soft[mask == 0], scene[mask == 0])
    assert (hard[mask == 1] != soft[mask == 1]).any()


def test_who_draws_the_outline_in_a_box(pipeline: Pipeline, tmp_path: Path) -> None:
    """By keyword, by the checkpoint's configuration, in many cases: the same image."""
    scene = np.full((40, 40, 3), (60, 90, 200), np.uint8)
    y, x = np.mgrid[:40, :40] + 0.5
    reference = np.where(np.hypot(y - 20, x - 20)[..., None] < 19, (200, 30, 60), (255, 255, 255)).astype(np.uint8)
    box = (10, 8, 34, 32)
    model = pipeline(scene, None, reference, box=box, feather=0)[0]
    outlined = pipeline(scene, None, reference, box=box, feather=0, box_outline="reference")[0]
    corner = outlined[8:10, 10:12].astype(int)
    assert np.abs(corner - (60, 90, 200)).max() <= 8 < np.abs(model[8:10, 10:12].astype(int) - (60, 90, 200)).max()
    assert (outlined[20, 22] != scene[20, 22]).any()
    sampling = replace(pipeline.config.sampling, box_outline="reference")
    own = replace(pipeline, config=replace(pipeline.config, sampling=sampling))
    np.testing.assert_array_equal(own(scene, None, reference, box=box, feather=0)[0], outlined)
    np.testing.assert_array_equal(own(scene, None, reference, box=box, feather=0, box_outline="model")[0], model)
    assert own.prepare(scene, None, reference, box=box).outline is not None
    files = [tmp_path / f"{name}.png" for name in ("scene", "reference", "result")]
    for path, image in zip(files, (scene, reference), strict=False):
        write_image(path, image)
    job = Job(Case(id="one", scene=files[0], box=box, reference=files[1]), (files[2],), 0)
    assert run_jobs(own, [job], RunOptions(feather=0)) == 0
    np.testing.assert_array_equal(read_scene(files[2]), outlined)


def test_reference_hint_and_guidance_count(pipeline: Pipeline) -> None:
    batch, keys, settings = _batch(pipeline, 0), image_keys(0, 1), sampler_settings(pipeline.config)

    def run(scale: float = 2.0, **changes: np.ndarray) -> np.ndarray:
        return np.asarray(generate_jit(pipeline.params, {**batch, **changes}, keys, jnp.float32(scale), settings))

    base = run()
    np.testing.assert_array_equal(base, run())
    for name in ("scene", "reference", "hint"):
        assert np.abs(run(**{name: 255 - batch[name]}) - base).max() > 1e-3, name
    assert np.abs(run(4.0) - base).max() > 1e-3
    hidden = np.where(batch["mask"] == 1, 255 - batch["scene"], batch["scene"])
    np.testing.assert_array_equal(run(scene=hidden), base, err_msg="the model saw what the mask hides")


def test_another_seed_or_guidance_compiles_nothing_and_nothing_returns_to_the_host(pipeline: Pipeline) -> None:
    batch, settings = _batch(pipeline, 0), sampler_settings(pipeline.config)
    generate_jit(pipeline.params, batch, image_keys(0, 1), jnp.float32(2), settings)
    before = generate_jit._cache_size()
    generate_jit(pipeline.params, batch, image_keys(9, 1), jnp.float32(7), settings)
    assert generate_jit._cache_size() == before
    lowered = generate_jit.lower(pipeline.params, batch, image_keys(0, 1), jnp.float32(2), settings).as_text()
    assert "callback" not in lowered and "outfeed" not in lowered


def test_previews_end_with_the_image(pipeline: Pipeline) -> None:
    """Here from the reference's tokens, kept from before."""
    batch, keys, settings = _batch(pipeline, 0), image_keys(5, 1), sampler_settings(pipeline.config)
    expected = generate_jit(pipeline.params, batch, keys, jnp.float32(2), settings)
    tokens = encode_reference(pipeline.params, batch["reference"], settings)
    kept = {name: batch[name] for name in ("scene", "mask", "hint")} | {"tokens": tokens}
    without = {name: tree for name, tree in pipeline.params.items() if not name.startswith("reference")}
    (first, preview), (last, image) = generate_with_previews(without, kept, keys, 2.0, settings, every=1)
    assert (first, last) == (1, 2)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert float(preview.min()) >= 0 and float(preview.max()) <= 1
    assert np.abs(preview - image).max() > 0.01
    compiled = advance._cache_size()
    only = list(generate_with_previews(without, kept, image_keys(6, 1), 3.0, settings, every=7))
    assert [step for step, _ in only] == [2] and advance._cache_size() == compiled


def test_what_generate_cannot_take(pipeline: Pipeline) -> None:
    batch, settings = _batch(pipeline, 0, 1), sampler_settings(pipeline.config)
    tokens = np.zeros((2, 5, 8), np.float32)
    without = {name: batch[name] for name in ("scene", "mask", "hint")}
    for changed, keys, message in [
        (batch, 3, "3 keys for 2 cases"),
        (batch | {"tokens": tokens}, 2, "either reference or tokens"),
        (without, 2, "either reference or tokens"),
        (without | {"tokens": tokens[:, :3]}, 2, r"tokens: need shape \(2, 5, 8\), not \(2, 3, 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda keys: generate(pipeline.params, changed, keys, 2.0, settings), image_keys(0, keys))  # noqa: B023
    with pytest.raises(ValueError, match="every must be at least 1"):
        next(generate_with_previews(pipeline.params, batch, image_keys(0, 2), 2.0, settings, every=0))


def test_box_is_a_mask(pipeline: Pipeline) -> None:
    scene, _, reference = _case()
    mask = np.zeros(scene.shape[:2], bool)
    mask[4:20, 10:25] = True
    by_box = pipeline(scene, None, reference, box=(10, 4, 25, 20))[0]
    np.testing.assert_array_equal(by_box, pipeline(scene, mask, reference)[0])


def test_bad_numbers(pipeline: Pipeline) -> None:
    scene, mask, reference = _case()
    for name, value in [
        ("num_images", 0),
        ("num_inference_steps", 0),
        ("num_inference_steps", 1001),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("guidance_rescale", 1.5),
        ("guidance_interval", (5.0, 0.3)),
        ("guidance_interval", (float("nan"), 1.0)),
        ("solver", "euler"),
        ("eta", -0.1),
        ("timestep_spacing", "even"),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", True),
        ("seed", 1.0),
        ("num_images", True),
        ("feather", -1),
        ("feather", 0.5),
        ("batch_size", 0),
        ("context", -1.0),
    ]:
        with pytest.raises(InputError, match=name):
            pipeline(scene, mask, reference, **{name: value})  # type: ignore[arg-type]


def test_every_choice_is_a_keyword_and_a_field_of_the_configuration() -> None:
    choices = {field.name for field in fields(SamplingChoices)}
    keywords = inspect.signature(Pipeline.__call__).parameters
    assert choices <= set(keywords) and all(keywords[name].default is None for name in choices)
    assert choices == {field.name for field in fields(SamplingConfig)} - {"steps_offset"}


def test_choices_replace_the_checkpoints_sampling(pipeline: Pipeline) -> None:
    own = replace(pipeline.config, sampling=replace(pipeline.config.sampling, eta=0.5))
    assert resolve_sampling(own) == own.sampling
    chosen = {"guidance_scale": 0.0, "guidance_rescale": 0.7, "guidance_interval": (0.3, 5.0), "eta": 0.0}
    assert resolve_sampling(own, SamplingChoices(**chosen)) == replace(own.sampling, **chosen)
    # An eta of the checkpoint's is its solver's.
    assert resolve_sampling(own, SamplingChoices(solver="dpmsolver++")).eta == 0
    with pytest.raises(InputError, match=r"eta = 0\.2: only the solver ddim"):
        resolve_sampling(own, SamplingChoices(solver="dpmsolver++", eta=0.2))


def test_the_sampler_is_given_every_choice(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(denoise, schedule, solver, prediction_type, state, keys, steps, **options):  # type: ignore[no-untyped-def]
        seen.update(options, solver=solver)
        step = state.latents, jnp.int32(1), None
        seen["unconditional"] = [function(*step)[1] is not None for function in (denoise, options["conditional_fn"])]
        return state, None

    monkeypatch.setattr("dtc_jax.inference.stages.sample_steps", record)
    # Beneath `jax.jit`, which would remember what it traced before.
    monkeypatch.setattr("dtc_jax.inference.stages.advance", advance.__wrapped__)
    chosen = {"guidance_rescale": 0.7, "guidance_interval": (0.3, 5.0), "timestep_spacing": "trailing"}
    for choices, expected in [
        (SamplingChoices(solver="dpmsolver++", **chosen), [True, False]),
        (SamplingChoices(guidance_scale=1.0, guidance_interval=(0.3, 5.0)), [False, False]),
        (SamplingChoices(), [True, False]),
    ]:
        settings = sampler_settings(pipeline.config, choices)
        arguments = pipeline.params, _batch(pipeline, 0), image_keys(0, 1), 2.0
        jax.eval_shape(lambda *inputs, settings=settings: generate(*inputs, settings), *arguments)
        assert seen["unconditional"] == expected
        if choices.solver:
            assert seen["solver"] == DPMSolverMultistep()
            assert (seen["guidance_rescale"], seen["guidance_interval"]) == (0.7, (0.3, 5.0))
            assert steps_of(settings).timestep.tolist() == [999, 499]
        else:
            assert (seen["solver"], seen["guidance_interval"]) == (DDIM(), None)
            assert steps_of(settings).timestep.tolist() == [501, 1]


def test_settings_follow_the_checkpoint(pipeline: Pipeline) -> None:
    settings = sampler_settings(pipeline.config)
    assert (settings.num_inference_steps, settings.guidance, settings.unconditional) == (2, True, "tokens")
    changed = sampler_settings(
        pipeline.config, SamplingChoices(num_inference_steps=7, guidance_scale=1.0, unconditional="both")
    )
    assert (changed.num_inference_steps, changed.guidance, changed.unconditional) == (7, False, "both")
    assert hash(settings) != hash(changed)


def test_load_names_tensors_that_do_not_fit(model_folder: Path, tmp_path: Path) -> None:
    config, params = load_model_folder(model_folder)
    del params["vgg"]
    save_model_folder(tmp_path / "no_vgg", config, params, dtype="float16")
    assert Pipeline.load(tmp_path / "no_vgg").params["null_tokens"]["embedding"].dtype == jnp.float32
    params["unet"]["conv_in"].pop("bias")
    save_model_folder(tmp_path / "broken", config, params)
    with pytest.raises(ModelFolderError, match=r"broken: .*1 missing \(unet/conv_in/bias\)"):
        Pipeline.load(tmp_path / "broken")
    wider = replace(config.model, hint=replace(config.model.hint, adapter_channels=(4, 4, 16)))
    with pytest.raises(ModelFolderError, match="misshapen"):
        Pipeline.from_params(replace(config, model=wider), load_model_folder(model_folder)[1])


def test_the_package_exports_the_pipeline() -> None:
    assert dtc_jax.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="nothing"):
        dtc_jax.nothing  # noqa: B018
