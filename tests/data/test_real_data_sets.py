"""Real photographs through build and inspect: VITON-HD samples, a manifest of all cases, files in unusual formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.data.build import main as build
from dtc_jax.data.inspect import main as inspect
from dtc_jax.data.records import decode, find_data_set, open_split


def _manifest(real_inputs: Path, path: Path) -> Path:
    cases = json.loads((real_inputs / "cases.json").read_text())["cases"]
    lines = [
        {
            "id": case["name"],
            "category": case["category"],
            "split": "test" if case["name"].startswith("clothing") else "train",
            **{field: str(real_inputs / case[field]) for field in ("scene", "mask", "reference")},
        }
        for case in cases
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_real_cases(real_inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _manifest(real_inputs, tmp_path / "cases.jsonl")
    flags = ["--source", str(manifest), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert build(["product_pairs", *flags]) == 0
    data_set = find_data_set(tmp_path / "out")
    assert sum(data_set.splits.values()) == len(manifest.read_text().splitlines()) >= 16
    assert data_set.metadata["num_broken"] == 0
    for split in data_set.splits:
        for record in open_split(data_set, split):
            sample = decode(record)
            assert sample.scene.shape == (512, 512, 3) and 0.02 < sample.mask.mean() < 0.8, sample.id
            y0, x0, y1, x1 = sample.rectangle
            assert sample.mask[y0:y1, x0:x1].all() and (y1 - y0) * (x1 - x0) > 1000, sample.id
            assert max(sample.reference.shape) <= 512
    report = tmp_path / "report.json"
    assert inspect([str(tmp_path / "out"), "--output", str(tmp_path / "sheet.png"), "--json", str(report)]) == 0
    # Photos of products in a room, on a lawn, on a table: they are what they are called, and nothing else is found.
    findings = json.loads(report.read_text())["findings"]
    assert set(findings) == {"references not on white"} and findings["references not on white"]["count"] == 6


def test_the_real_vitonhd_samples(real_inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_inputs / "viton-hd-mini"
    flags = ["--source", str(folder), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert build(["vitonhd", *flags]) == 0
    # One person's garment is not among the files.
    assert "broken and left out: 1 of 6" in capsys.readouterr().out
    samples = [decode(record) for record in open_split(find_data_set(tmp_path / "out"), "test")]
    assert [sample.id for sample in samples] == ["00055_00", "00057_00", "00064_00", "00067_00", "13987_00"]
    assert all(0.2 < sample.mask.mean() < 0.6 for sample in samples)
    assert build(["vitonhd", *flags, "--noface", "--name", "noface"]) == 2
    assert "image-parse-v3/" in capsys.readouterr().err
    assert inspect([str(tmp_path / "out"), "--strict"]) == 0


def test_odd_formats(real_inputs: Path, tmp_path: Path) -> None:
    odd = real_inputs / "odd-inputs"
    pictures = sorted(path for path in odd.iterdir() if path.suffix != ".json" and "mask" not in path.name)
    masks = {"bench_dog.png": "bench_dog_mask_blur.png", "rgba_256.png": "rgba_256_mask.png"}
    lines: list[dict[str, object]] = []
    for path in pictures:
        region = {"mask": str(odd / masks[path.name])} if path.name in masks else {"box": [20, 20, 60, 50]}
        lines.append({"id": path.name, "scene": str(path), "reference": str(path), **region})
    manifest = tmp_path / "odd.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--source", str(manifest), "--output", str(tmp_path / "out"), "--workers", "1", "--size", "128"]
    assert build(["product_pairs", *flags, "--max-broken", "0"]) == 0
    read = [decode(record) for record in open_split(find_data_set(tmp_path / "out"), "train")]
    assert [sample.id for sample in read] == [path.name for path in pictures]
    plain = {"chair_gray.png", "gray16.tif"}  # within the box and its surroundings
    assert all(np.ptp(sample.scene) > 20 for sample in read if sample.id not in plain)
    report = tmp_path / "report.json"
    assert inspect([str(manifest), "--json", str(report), "--size", "128"]) == 0
    assert json.loads(report.read_text())["findings"]["grey masks"]["cases"] == ["train/bench_dog.png"]
