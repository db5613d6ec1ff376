"""Real photos, masks and references, and files in unusual formats, through a random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dtc_jax.data.images import on_white, read_mask, read_reference, read_scene
from dtc_jax.inference.command import main
from dtc_jax.inference.pipeline import Pipeline


def _shown(path: Path) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def test_every_case_through_one_manifest(real_inputs: Path, model_folder: Path, tmp_path: Path) -> None:
    cases = json.loads((real_inputs / "cases.json").read_text())["cases"]
    assert len(cases) >= 16
    lines = [
        {"id": case["name"], **{field: str(real_inputs / case[field]) for field in ("scene", "mask", "reference")}}
        for case in cases
    ]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--manifest", str(tmp_path / "cases.jsonl"), "--output-dir", str(tmp_path / "out")]
    assert main([*flags, "--checkpoint", str(model_folder)]) == 0
    for case in cases:
        result = np.array(Image.open(tmp_path / "out" / f"{case['name']}.png"))
        scene, mask = _shown(real_inputs / case["scene"]), np.array(Image.open(real_inputs / case["mask"])) >= 128
        assert result.shape == scene.shape
        np.testing.assert_array_equal(result[~mask], scene[~mask], err_msg=case["name"])
        changed = (result[mask] != scene[mask]).any(axis=-1).mean()
        assert changed > 0.5, f"{case['name']}: only {changed:.0%} of the mask was painted"


def test_hints_of_the_real_cases_are_not_degenerate(real_inputs: Path, pipeline: Pipeline) -> None:
    for case in json.loads((real_inputs / "cases.json").read_text())["cases"]:
        files = [real_inputs / case[field] for field in ("scene", "mask", "reference")]
        batch = pipeline.prepare(*files).batch
        share = batch["mask"].mean()
        assert 0.01 < share < 0.9, f"{case['name']}: the mask fills {share:.0%} of the window"
        assert batch["hint"].any(), case["name"]
        assert not batch["hint"][batch["mask"][..., 0] == 0].any(), case["name"]


def test_odd_formats(real_inputs: Path) -> None:
    files = sorted(path for path in (real_inputs / "odd-inputs").iterdir() if path.suffix != ".json")
    assert files
    for path in files:
        scene, reference = read_scene(path), on_white(read_reference(path))
        assert scene.dtype == reference.dtype == np.uint8 and scene.shape == reference.shape, path.name
        if "16" not in path.name:
            np.testing.assert_array_equal(scene, _shown(path), err_msg=path.name)
    for path in files:
        if "mask" in path.name:
            mask = read_mask(path)
            assert 0.01 < mask.mean() < 0.9 and set(np.unique(mask)) == {0, 1}, path.name
