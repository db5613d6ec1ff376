"""sample.py's command line, in this process: results, names, manifests, and errors of one line with exit code 2."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dtc_jax.inference.command import main


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (30, 42, 3), np.uint8)).save(tmp_path / "scene.png")
    mask = np.zeros((30, 42), np.uint8)
    mask[5:22, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(random.integers(0, 240, (20, 20, 3), np.uint8)).save(tmp_path / "reference.png")
    return tmp_path


def _flags(inputs: Path, model_folder: Path, **changes: str | None) -> list[str]:
    flags: dict[str, str | None] = {
        "scene": str(inputs / "scene.png"),
        "mask": str(inputs / "mask.png"),
        "reference": str(inputs / "reference.png"),
        "output": str(inputs / "out.png"),
        "checkpoint": str(model_folder),
        "batch-size": "1",  # on one device: nothing is compiled for several
        **changes,
    }
    return [part for name, value in flags.items() if value is not None for part in (f"--{name}", value)]


def _pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_one_image(inputs: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(_flags(inputs, model_folder)) == 0
    result, scene = _pixels(inputs / "out.png"), _pixels(inputs / "scene.png")
    outside = _pixels(inputs / "mask.png") == 0
    assert result.shape == scene.shape
    np.testing.assert_array_equal(result[outside], scene[outside])
    assert (result[~outside] != scene[~outside]).any()
    assert sorted(path.name for path in inputs.iterdir()) == ["mask.png", "out.png", "reference.png", "scene.png"]
    assert capfd.readouterr().out == f"{inputs / 'out.png'}\n"


def test_box_seed_and_several_images(inputs: Path, model_folder: Path) -> None:
    assert main(_flags(inputs, model_folder, seed="3")) == 0
    box = _flags(inputs, model_folder, mask=None, box="10,5,30,22", seed="3", **{"num-images": "2"})
    assert main(box) == 0
    assert not (inputs / "out-02.png").exists()
    np.testing.assert_array_equal(_pixels(inputs / "out-00.png"), _pixels(inputs / "out.png"))
    assert (_pixels(inputs / "out-00.png") != _pixels(inputs / "out-01.png")).any()


def _write_manifest(inputs: Path, *entries: dict) -> str:
    (inputs / "cases.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n")
    return str(inputs / "cases.jsonl")


def _entry(name: str, **changes: object) -> dict:
    return {"id": name, "scene": "scene.png", "reference": "reference.png", "mask": "mask.png", **changes}


def test_manifest(inputs: Path, model_folder: Path) -> None:
    manifest = _write_manifest(
        inputs, _entry("a"), _entry("b", mask=None, box=[10, 5, 30, 22], seed=3, category="bag", split="test")
    )
    out = inputs / "results" / "new"
    flags = ["--manifest", manifest, "--output-dir", str(out), "--checkpoint", str(model_folder), "--batch-size", "1"]
    assert main(flags) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "results.jsonl"]
    for name, seed in [("a", "0"), ("b", "3")]:
        assert main(_flags(inputs, model_folder, seed=seed)) == 0
        np.testing.assert_array_equal(_pixels(out / f"{name}.png"), _pixels(inputs / "out.png"))
    assert main([*flags, "--num-images", "2"]) == 0
    np.testing.assert_array_equal(_pixels(out / "b-00.png"), _pixels(out / "b.png"))
    assert (out / "a-01.png").exists()


def _expect_error(argv: list[str], capfd: pytest.CaptureFixture[str], *parts: str) -> None:
    capfd.readouterr()
    assert main(argv) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err, captured.err


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"scene": "absent.png"}, ("scene absent.png", "no such file")),
        ({"scene": None}, ("--scene is missing",)),
        ({"reference": "TEXT"}, ("not an image",)),
        ({"mask": "OTHER_SIZE"}, ("8x8", "42x30")),
        ({"mask": "EMPTY"}, ("empty",)),
        ({"mask": "ALL_WHITE"}, ("all of it is white",)),
        ({"mask": None}, ("--mask or --box",)),
        ({"box": "1,2,3,4"}, ("--mask or --box",)),
        ({"mask": None, "box": "1,2,3"}, ("--box 1,2,3", "x0,y0,x1,y1")),
        ({"mask": None, "box": "1,2,3,x"}, ("--box",)),
        ({"mask": None, "box": "0,0,43,4"}, ("0,0,43,4", "42")),
        ({"output": "out.jpg"}, (".jpg", ".png")),
        ({"output": "out"}, ("suffix",)),
        ({"output": "no/such/folder/out.png"}, ("no such folder",)),
        ({"seed": "x"}, ("seed", "x")),
        ({"seed": "-1"}, ("seed",)),
        ({"num-images": "0"}, ("num-images",)),
        ({"num-inference-steps": "0"}, ("num_inference_steps",)),
        ({"guidance-scale": "a"}, ("guidance-scale",)),
        ({"guidance-scale": "-2"}, ("guidance_scale",)),
        ({"guidance-scale": "nan"}, ("guidance_scale",)),
        ({"context": "-1"}, ("context",)),
        ({"unconditional": "none"}, ("unconditional", "tokens", "both")),
        ({"sceen": "a.png"}, ("--sceen",)),
        ({"checkpoint": "nowhere"}, ("nowhere", "no such folder")),
        ({"checkpoint": "INPUTS"}, ("neither a model folder",)),
        ({"output-dir": "x"}, ("--manifest",)),
        ({"scene": "CUT"}, ("truncated", "damaged")),
        ({"scene": "HUGE"}, ("too large", "2500000000")),
        ({"mask": "HUGE"}, ("mask", "too large")),
        ({"output": "SCENE"}, ("is an input",)),
        ({"output": "REFERENCE"}, ("is an input",)),
        ({"output": "x" * 300 + ".png"}, ("cannot be written",)),
        ({"seed": "4294967296"}, ("seed",)),
        ({"feather": "-1"}, ("feather",)),
        ({"regions": "all"}, ("regions", "each", "largest", "together")),
        ({"batch-size": "0"}, ("batch-size",)),
        ({"num-processes": "2"}, ("--manifest",)),
        ({"mask": None, "box": "-1,0,9,9"}, ("box -1,0,9,9",)),
        ({"manifest": "absent.jsonl"}, ("--manifest",)),
    ],
    ids=str,
)
def test_errors(
    inputs: Path,
    model_folder: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
    parts: tuple[str, ...],
) -> None:
    (inputs / "text.png").write_text("text")
    Image.new("L", (8, 8), 255).save(inputs / "small.png")
    Image.new("L", (42, 30)).save(inputs / "black.png")
    Image.new("L", (42, 30), 255).save(inputs / "white.png")
    random = np.random.default_rng(0).integers(0, 256, (300, 420, 3), np.uint8)
    Image.fromarray(random).save(inputs / "cut.jpg")
    content = (inputs / "cut.jpg").read_bytes()
    (inputs / "cut.jpg").write_bytes(content[: len(content) // 2])
    header = struct.pack(">4sIIBBBBB", b"IHDR", 50_000, 50_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (inputs / "huge.png").write_bytes(start + struct.pack(">I4s", 0, b"IDAT"))
    before = (inputs / "scene.png").read_bytes()
    names = {
        "CUT": "cut.jpg",
        "HUGE": "huge.png",
        "SCENE": "scene.png",
        "REFERENCE": "../" + inputs.name + "/reference.png",
    }
    names |= {
        "TEXT": "text.png",
        "OTHER_SIZE": "small.png",
        "EMPTY": "black.png",
        "ALL_WHITE": "white.png",
        "INPUTS": ".",
    }
    changes = {name: str(inputs / names[value]) if value in names else value for name, value in changes.items()}
    _expect_error(_flags(inputs, model_folder, **changes), capfd, *parts)
    assert not (inputs / "out.png").exists() and (inputs / "scene.png").read_bytes() == before


def test_a_product_in_each_place_of_the_mask(inputs: Path, model_folder: Path) -> None:
    mask = np.zeros((30, 42), np.uint8)
    mask[5:20, 4:16] = mask[8:22, 24:38] = 255
    mask[27, 1:4] = 255  # a speck
    Image.fromarray(mask).save(inputs / "mask.png")
    scene, inside = _pixels(inputs / "scene.png"), mask > 0
    inside[27] = False
    results = {}
    for regions in ("each", "largest", "together"):
        assert main(_flags(inputs, model_folder, regions=regions)) == 0
        results[regions] = _pixels(inputs / "out.png")
        np.testing.assert_array_equal(results[regions][mask == 0], scene[mask == 0])
    changed = {regions: (result != scene).any(axis=-1) for regions, result in results.items()}
    assert changed["each"][inside].mean() > 0.9 and not changed["each"][27].any()
    assert changed["largest"][:, 24:].any() and not changed["largest"][:, :24].any()
    assert changed["together"][27, 1:4].any() and (results["together"] != results["each"]).any()
    for box, name in [("4,5,16,20", "left"), ("24,8,38,22", "right")]:
        assert main(_flags(inputs, model_folder, mask=None, box=box, output=str(inputs / f"{name}.png"))) == 0
    np.testing.assert_array_equal(results["each"][:, :20], _pixels(inputs / "left.png")[:, :20])
    np.testing.assert_array_equal(results["each"][:, 20:26], _pixels(inputs / "right.png")[:, 20:26])


def test_what_the_scenes_file_says_goes_into_the_result(inputs: Path, model_folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = 6, "somebody"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(inputs / "scene.png") as scene:
        scene.transpose(Image.Transpose.ROTATE_90).save(inputs / "turned.png", exif=exif, icc_profile=profile)
    assert main(_flags(inputs, model_folder, scene=str(inputs / "turned.png"))) == 0
    with Image.open(inputs / "out.png") as result:
        assert result.size == (42, 30) and result.info["icc_profile"] == profile
        assert result.getexif()[0x0112] == 1 and result.getexif()[0x8298] == "somebody"
        outside = _pixels(inputs / "mask.png") == 0
        np.testing.assert_array_equal(np.array(result)[outside], _pixels(inputs / "scene.png")[outside])


def test_unwritable_output(
    inputs: Path, model_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, so that a read-only folder proves nothing where tests run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _expect_error(_flags(inputs, model_folder), capfd, "cannot write")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{", ("line 2", "not JSON")),
        ("[]", ("line 2", "object")),
        ({"id": None}, ("line 2", "'id'")),
        ({"id": "a"}, ("line 2", "'a'", "line 1")),
        ({"id": "../b"}, ("line 2", "../b")),
        ({"scene": 3}, ("line 2", "'scene'")),
        ({"box": [1, 2, 3, 4]}, ("line 2", "one of the two")),
        ({"mask": None, "box": [1, 2, 3]}, ("line 2", "'box'")),
        ({"seed": -3}, ("line 2", "'seed'")),
        ({"sceen": "x"}, ("line 2", "'sceen'")),
    ],
    ids=str,
)
def test_manifest_errors(
    inputs: Path, model_folder: Path, capfd: pytest.CaptureFixture[str], line: str | dict, parts: tuple[str, ...]
) -> None:
    manifest = _write_manifest(inputs, _entry("a"))
    second = (
        line if isinstance(line, str) else json.dumps(_entry("b", **line) if "id" not in line else _entry("b") | line)
    )
    Path(manifest).write_text(json.dumps(_entry("a")) + "\n" + second + "\n")
    flags = ["--manifest", manifest, "--output-dir", str(inputs / "out"), "--checkpoint", str(model_folder)]
    _expect_error(flags, capfd, *parts)


def test_manifest_flags(inputs: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = _write_manifest(inputs, _entry("a"))
    _expect_error(["--manifest", manifest], capfd, "--output-dir")
    _expect_error(["--manifest", manifest, "--output-dir", "x", "--scene", "y"], capfd, "--scene")
    _expect_error(["--manifest", str(inputs), "--output-dir", "x"], capfd, "manifest")
    (inputs / "cases.jsonl").write_text("\n")
    _expect_error(["--manifest", manifest, "--output-dir", "x"], capfd, "no cases")
    _expect_error(
        ["--manifest", _write_manifest(inputs, _entry("a")), "--output-dir", manifest], capfd, "output folder"
    )


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in [
        "scene",
        "mask",
        "box",
        "reference",
        "output",
        "manifest",
        "output-dir",
        "checkpoint",
        "seed",
        "num-images",
        "context",
    ]:
        assert f"--{flag}" in text
