"""The demonstration and the examples that it samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from dtc_jax import demo
from dtc_jax.data.images import InputError, read_mask, read_scene
from dtc_jax.data.manifest import Case, read_manifest
from dtc_jax.data.window import Window, crop_window
from dtc_jax.evaluation.examples import choose_examples, example_cases
from dtc_jax.evaluation.fidelity import GREY
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import read_case
from dtc_jax.weights.run_folder import checkpoint_config
from tests.evaluation.models import save_test_model

PICTURE = Path(demo.dtc_jax.__file__).parent.parent / "docs" / "images" / "demo.png"


@pytest.fixture(name="examples", scope="module")
def _examples() -> list[Case]:
    return read_manifest(demo.EXAMPLES_FOLDER / demo.MANIFEST_FILE)


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_test_model(tmp_path_factory.mktemp("models") / "one")


def test_the_examples_are_small_and_hide_their_products(examples: list[Case]) -> None:
    files = [path for path in demo.EXAMPLES_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert 12 <= len(examples) <= 16
    assert {path.name for path in demo.EXAMPLES_FOLDER.iterdir() if path.is_dir()} == {e.id for e in examples}
    assert sum(example.id.endswith("-box") for example in examples) == len(examples) // 2
    for example in examples:
        scene, truth = read_scene(example.scene), read_scene(str(example.truth))
        mask = read_mask(str(example.mask), scene.shape[:2]) > 0
        assert (scene[mask] == GREY).all()
        np.testing.assert_array_equal(scene[~mask], truth[~mask])
        assert crop_window(mask.astype(np.uint8), demo.WHOLE_SCENE) == Window(0, 0, 64)


def test_the_examples_are_what_their_numbers_make(examples: list[Case], tmp_path: Path) -> None:
    cases = example_cases(examples)
    for i, example in enumerate(examples):
        assert np.abs(read_scene(example.reference).astype(int) - cases.reference[i]).mean() < 1
        assert cases.is_box[i] == example.id.endswith("-box")
    assert [example.seed for example in examples] == list(choose_examples(len(examples)))
    swapped = Path(shutil.copy(str(examples[0].truth), tmp_path / "truth.png"))
    wrong = Case(id="x", scene=swapped, mask=swapped, reference=swapped, truth=swapped, seed=examples[1].seed)
    with pytest.raises(InputError, match="--regenerate"):
        example_cases([wrong])
    with pytest.raises(InputError, match="needs 'truth' and 'seed'"):
        example_cases([Case(id="x", scene=swapped, mask=swapped, reference=swapped)])


def test_the_demo_samples_measures_and_writes(
    examples: list[Case], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output" / "demo"
    arguments = ["--checkpoint", str(folder), "--output-dir", str(output), "--batch-size", "4"]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out
    assert str(output / "sheet.png") in printed
    report = json.loads((output / "metrics.json").read_text())
    assert list(report["examples"]) == [example.id for example in examples]
    assert "card" in report
    assert report["summary"]["fine"]["n"] == report["summary"]["box"]["n"] == len(examples) // 2

    example, figures = examples[0], report["examples"][examples[0].id]
    result, truth = read_scene(output / "results" / f"{example.id}.png"), read_scene(str(example.truth))
    inside = read_mask(str(example.mask)) > 0
    np.testing.assert_array_equal(result[~inside], truth[~inside])
    _, ssim = structural_similarity(
        result / 255,
        truth / 255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
        full=True,
    )
    assert figures["ssim"] == pytest.approx(ssim[inside].mean(), abs=1e-4)
    error = np.mean(((result / 255.0 - truth / 255.0) ** 2)[inside])
    assert figures["psnr"] == pytest.approx(-10 * np.log10(error), rel=1e-4)
    assert report["mean"]["ssim"] == pytest.approx(np.mean([e["ssim"] for e in report["examples"].values()]))

    # The same pipeline as anybody's: one image by itself is what the demo wrote.
    alone = Pipeline.load(folder)(
        example.scene, example.mask, example.reference, seed=example.seed or 0, context=demo.WHOLE_SCENE, batch_size=4
    )
    assert np.abs(alone[0].astype(int) - result).max() <= 1
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.width > 6 * 128
        assert sheet.height > len(examples) * 128


def test_the_picture_in_the_documentation_is_of_these_examples(examples: list[Case]) -> None:
    """All of it but the results, which the shipped model has to sample."""
    model = checkpoint_config(None).model
    prepared = [
        read_case(
            example.scene, example.mask, example.reference, model, box=example.box, context=demo.WHOLE_SCENE
        ).regions[0]
        for example in examples
    ]
    truths = [read_scene(str(example.truth)) for example in examples]
    sheets = [
        demo.draw_sheet(examples, prepared, [np.full_like(truth, level) for truth in truths], truths)
        for level in (0, 255)
    ]
    documented = read_scene(PICTURE)
    assert documented.shape == sheets[0].shape
    same = (sheets[0] == sheets[1]).all(axis=-1)
    assert 0.7 < same.mean() < 0.9
    # Another release of Pillow may draw its letters otherwise.
    assert (documented != sheets[0]).any(axis=-1)[same].mean() < 0.005


@pytest.mark.slow
def test_the_picture_in_the_documentation_is_what_the_demo_draws(tmp_path: Path) -> None:
    assert demo.main(["--output-dir", str(tmp_path)]) == 0
    difference = np.abs(read_scene(tmp_path / "sheet.png").astype(int) - read_scene(PICTURE))
    assert difference.mean() < 0.5


def test_errors_of_use_are_one_line(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, message in [
        (["--examples", str(tmp_path)], "examples " + str(tmp_path / "manifest.jsonl") + ": no such file"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--output-dir", str(file / "demo")], "cannot be made"),
        (["--checkpoint", str(tmp_path / "none"), "--output-dir", str(tmp_path)], "no such folder"),
        (["--output"], "see python -m dtc_jax.demo --help"),
    ]:
        assert demo.main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert len(error.splitlines()) == 1


def test_regenerate_writes_the_committed_examples(examples: list[Case], tmp_path: Path) -> None:
    assert demo.main(["--regenerate", "--examples", str(tmp_path / "demo")]) == 0
    written = read_manifest(tmp_path / "demo" / "manifest.jsonl")
    assert [example.id for example in written] == [example.id for example in examples]
    stale = json.loads((tmp_path / "demo" / "manifest.jsonl").read_text().splitlines()[0])
    (tmp_path / "demo" / stale["id"]).rename(tmp_path / "demo" / "old")
    renamed = json.dumps(stale).replace(stale["id"], "old")
    (tmp_path / "demo" / "manifest.jsonl").write_text(renamed + "\n")
    assert demo.main(["--regenerate", "--examples", str(tmp_path / "demo")]) == 0
    assert not (tmp_path / "demo" / "old").exists()
    for new, committed in zip(written, examples, strict=True):
        assert np.abs(read_scene(new.scene).astype(int) - read_scene(committed.scene)).mean() < 1
