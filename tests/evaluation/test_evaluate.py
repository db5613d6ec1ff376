"""The command line of the evaluation, and a model as its generator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
from PIL import Image

from dtc_jax import evaluate
from dtc_jax.config import BoxOutline
from dtc_jax.data.outline import is_box
from dtc_jax.evaluation.cases import evaluation_batch
from dtc_jax.evaluation.fidelity import GenerationInputs, hide_truth
from dtc_jax.evaluation.generators import pipeline_generator, prepare_whole_scene
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import SamplingChoices
from tests.evaluation.models import save_test_model


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_test_model(tmp_path_factory.mktemp("models") / "one")


@pytest.fixture(name="inputs", scope="module")
def _inputs() -> GenerationInputs:
    cases = evaluation_batch(0, 4, seed=5)
    return GenerationInputs(hide_truth(cases.truth, cases.mask), cases.mask, cases.reference, cases.case)


def test_the_generator_fills_the_mask_and_depends_on_the_seed_alone(folder: Path, inputs: GenerationInputs) -> None:
    generate = pipeline_generator(Pipeline.load(folder))
    result = generate(inputs)
    outside = np.broadcast_to(inputs.mask == 0, result.shape)
    np.testing.assert_array_equal(result[outside], inputs.scene[outside])
    assert (result != inputs.scene)[~outside].mean() > 0.5
    backwards = generate(GenerationInputs(*(field[::-1] for field in inputs)))[::-1]
    assert np.abs(result.astype(int) - backwards).max() <= 1
    other_seeds = generate(inputs._replace(seed=inputs.seed + np.uint32(1)))
    assert (other_seeds[0] != result[0]).any()


def test_whole_scenes_are_neither_cut_nor_resized(folder: Path, inputs: GenerationInputs) -> None:
    case = next(prepare_whole_scene(Pipeline.load(folder), inputs))
    np.testing.assert_array_equal(case.batch["scene"], inputs.scene[0])
    np.testing.assert_array_equal(case.batch["mask"], inputs.mask[0])
    np.testing.assert_array_equal(case.put_back(inputs.scene[0] // 2)[10, 10], inputs.scene[0][10, 10])
    assert (case.batch["hint"][inputs.mask[0, ..., 0] == 0] == 0).all()


def test_the_generator_draws_outlines_as_it_is_told(folder: Path, inputs: GenerationInputs) -> None:
    """In boxes alone; what is outside the product there is no network's."""
    pipeline = Pipeline.load(folder)
    outlined = list(prepare_whole_scene(pipeline, inputs, "reference"))
    boxes = [is_box(mask[..., 0]) for mask in inputs.mask]
    given = [case.outline is not None for case in outlined]
    assert any(given) and not any(has and not box for has, box in zip(given, boxes, strict=True))
    plain, cut = (
        pipeline_generator(pipeline, SamplingChoices(box_outline=kind))(inputs) for kind in get_args(BoxOutline)
    )
    for case, mask, one, other in zip(outlined, inputs.mask, plain, cut, strict=True):
        if case.outline is None:
            assert np.abs(one.astype(int) - other).max() <= 1
        else:
            rest = (mask[..., 0] > 0) & (case.outline.coverage == 0)
            np.testing.assert_array_equal(other[rest], case.outline.surroundings[rest])
            assert (one[rest] != other[rest]).any()


@pytest.mark.parametrize("kind", ["canny", "latent"])
def test_the_generator_is_shown_the_model_s_kind_of_hint(
    folder: Path, inputs: GenerationInputs, kind: Literal["canny", "latent"]
) -> None:
    pipeline = Pipeline.load(folder)
    model = replace(pipeline.config.model, hint=replace(pipeline.config.model.hint, kind=kind))
    other = replace(pipeline, config=replace(pipeline.config, model=model))
    pixels, hint = (next(prepare_whole_scene(shown, inputs)).batch["hint"] for shown in (pipeline, other))
    outside = inputs.mask[0, ..., 0] == 0
    if kind == "canny":
        assert set(np.unique(hint)) == {0, 255} and set(np.unique(pixels)) != {0, 255}
    else:
        np.testing.assert_array_equal(hint[outside], inputs.scene[0][outside])


def test_the_command_measures_writes_and_prints(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_test_model(tmp_path / "two", seed=1)
    arguments = ["--checkpoint", str(folder), "--num-products", "6", "--batch-size", "4", "--seed", "5"]
    files = ["--output", str(tmp_path / "metrics.json"), "--sheet", str(tmp_path / "sheet.png"), "--sheet-rows", "5"]
    assert evaluate.main([*arguments, *files, "--compare", f"two={other}"]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert list(report["rows"]) == ["model", "two", "naive_paste", "stretched_paste"]
    assert report["rows"]["model"]["all"]["n"] == 6
    assert report["settings"]["num_inference_steps"] == 2
    assert report["settings"]["guidance_scale"] == 2.0
    assert report["settings"]["solver"].startswith("DDIM")
    assert report["protocol"]["image_size"] == 64
    assert set(report["model_minus"]) == {"two", "naive_paste", "stretched_paste"}
    printed = capsys.readouterr().out
    assert "| naive_paste     | all " in printed
    assert "6 held-out products at 64 pixels, seed 5; 2 steps of DDIM" in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 7 * 128
        assert 5 * 128 < sheet.height < 6 * 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-products", "0"], "--num-products must be from 1 to"),
        (["--nonsense", "3"], "see python -m dtc_jax.evaluate --help"),
        (["--batch-size", "0"], "--batch-size"),
        (["--seed", "5000"], "--seed must be from 0 to 2047"),
        (["--compare", "somewhere"], "needs NAME=DIR"),
        (["--compare", "model=x"], "name is taken"),
        (["--checkpoint", "/nowhere"], "/nowhere: no such folder"),
        (["--output", "/nowhere/metrics.json"], "no such folder"),
        (["--sheet", "sheet.jpg"], "only .png is written"),
        (["--guidance-scale", "-1"], "guidance_scale"),
    ],
)
def test_errors_of_use_are_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default = [] if "--checkpoint" in arguments else ["--checkpoint", str(folder)]
    assert evaluate.main([*default, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_checkpoints_of_other_sizes_are_not_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = save_test_model(tmp_path / "small", image_size=32)
    assert evaluate.main(["--checkpoint", str(folder), "--compare", f"small={small}"]) == 2
    assert "--compare small: its image and reference sizes are (32, 32), not (64, 64)" in capsys.readouterr().err
