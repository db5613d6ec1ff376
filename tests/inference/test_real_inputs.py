"""Real photos, masks and references, and files in unusual formats, through a random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dtc_jax.data.images import on_white, read_mask, read_reference, read_scene
from dtc_jax.data.regions import split_regions
from dtc_jax.evaluation.color_histograms import color_histogram, nearest_is_own, reference_histogram
from dtc_jax.inference.command import main
from dtc_jax.inference.pipeline import Pipeline


def _shown(path: Path) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def _odd(real_inputs: Path) -> list[Path]:
    files = sorted(path for path in (real_inputs / "odd-inputs").iterdir() if path.suffix != ".json")
    assert len(files) >= 18
    return files


def test_everything_through_one_run_of_the_command(real_inputs: Path, model_folder: Path, tmp_path: Path) -> None:
    """All cases, and every odd file as scene and as reference, those that are masks as masks: pictures of the scenes'
    own sizes that equal them outside the masks."""
    cases = json.loads((real_inputs / "cases.json").read_text())["cases"]
    assert len(cases) >= 16
    lines: list[dict] = [
        {"id": case["name"], **{field: str(real_inputs / case[field]) for field in ("scene", "mask", "reference")}}
        for case in cases
    ]
    scene, reference = str(real_inputs / "odd-inputs" / "gray_128.jpg"), lines[0]["reference"]
    for path in _odd(real_inputs):
        lines.append({"id": f"scene-{path.name}", "scene": str(path), "box": [5, 7, 51, 46], "reference": reference})
        lines.append({"id": f"reference-{path.name}", "scene": scene, "box": [30, 9, 80, 70], "reference": str(path)})
        if "mask" in path.name:
            blank = tmp_path / f"{path.name}.blank.png"
            Image.new("RGB", Image.open(path).size, (90, 120, 200)).save(blank)
            lines.append({"id": f"mask-{path.name}", "scene": str(blank), "mask": str(path), "reference": reference})
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--manifest", str(tmp_path / "cases.jsonl"), "--output-dir", str(tmp_path / "out"), "--batch-size", "1"]
    assert main([*flags, "--checkpoint", str(model_folder)]) == 0
    for line in lines:
        with Image.open(tmp_path / "out" / f"{line['id']}.png") as image:
            result, orientation = np.array(image), image.getexif().get(0x0112, 1)
        scene_file = Path(line["scene"])
        shown = read_scene(scene_file) if "16" in scene_file.name else _shown(scene_file)
        assert result.shape == shown.shape and orientation == 1, line["id"]
        if "box" in line:
            x0, y0, x1, y1 = line["box"]
            mask = np.zeros(shown.shape[:2], bool)
            mask[y0:y1, x0:x1] = True
        else:
            with Image.open(line["mask"]) as image:
                mask = np.array(image.convert("L")) >= 128
        np.testing.assert_array_equal(result[~mask], shown[~mask], err_msg=line["id"])
        changed = (result[mask] != shown[mask]).any(axis=-1).mean()
        assert changed > 0.5, f"{line['id']}: only {changed:.0%} of the mask was painted"


def test_the_shipped_model_paints_the_product_that_it_is_given(real_inputs: Path) -> None:
    """The scene's size, nothing outside the mask; inside, another picture than the scene's and than another product's,
    and in most cases the colours of its own product, of all 16."""
    shipped = Pipeline.load()
    cases = json.loads((real_inputs / "cases.json").read_text())["cases"]
    files = [[real_inputs / case[field] for field in ("scene", "mask", "reference")] for case in cases]
    painted, products = [], []
    for number, (scene_file, mask_file, reference) in enumerate(files):
        scene, mask = _shown(scene_file), read_mask(mask_file) > 0
        other_reference = files[(number + 5) % len(files)][2]
        own, other = (shipped(scene_file, mask_file, product)[0] for product in (reference, other_reference))
        for result in (own, other):
            np.testing.assert_array_equal(result[~mask], scene[~mask], err_msg=cases[number]["name"])
        change, difference = (np.abs(own[mask].astype(int) - image[mask]).mean() for image in (scene, other))
        print(f"{cases[number]['name']}: {change:.1f} levels from the scene, {difference:.1f} from another product")
        assert change >= 10 and difference >= 5, cases[number]["name"]
        painted.append(color_histogram(own[mask]))
        products.append(reference_histogram(read_reference(reference)))
    nearest = nearest_is_own(np.stack(painted), np.stack(products))
    print(f"own colours nearest: {nearest.sum():.0f} of {len(nearest)}")
    assert nearest.sum() >= 10


def test_each_of_two_people_is_a_place(real_inputs: Path) -> None:
    mask = read_mask(real_inputs / "two-components-01" / "mask.png")
    assert [int(region.sum()) for region in split_regions(mask)] == [23421, 22053]
    for name in ("jpegmask_mask.jpg", "bench_dog_mask_blur.png", "rgba_256_mask.png"):
        assert len(split_regions(read_mask(real_inputs / "odd-inputs" / name))) == 1, "noise is no place"


def test_hints_of_the_real_cases_are_not_degenerate(real_inputs: Path, pipeline: Pipeline) -> None:
    for case in json.loads((real_inputs / "cases.json").read_text())["cases"]:
        files = [real_inputs / case[field] for field in ("scene", "mask", "reference")]
        batch = pipeline.prepare(*files).batch
        share = batch["mask"].mean()
        assert 0.01 < share < 0.9, f"{case['name']}: the mask fills {share:.0%} of the window"
        assert batch["hint"].any(), case["name"]
        assert not batch["hint"][batch["mask"][..., 0] == 0].any(), case["name"]


def test_odd_formats(real_inputs: Path) -> None:
    files = _odd(real_inputs)
    for path in files:
        scene, reference = read_scene(path), on_white(read_reference(path))
        assert scene.dtype == reference.dtype == np.uint8 and scene.shape == reference.shape, path.name
        if "16" not in path.name:
            np.testing.assert_array_equal(scene, _shown(path), err_msg=path.name)
    for path in files:
        if "mask" in path.name:
            mask = read_mask(path)
            assert 0.01 < mask.mean() < 0.9 and set(np.unique(mask)) == {0, 1}, path.name
