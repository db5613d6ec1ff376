"""Tokens computed once are those that sampling computes, and no others are taken for them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from dtc_jax.data.images import InputError
from dtc_jax.inference import reference_tokens
from dtc_jax.inference.catalogue import main as make_catalogue
from dtc_jax.inference.command import main
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.weights import load_model_folder, save_model_folder
from tests.inference.pictures import entry, pixels, write_manifest, write_pictures


@pytest.fixture
def shop(tmp_path: Path, model_folder: Path) -> Path:
    write_pictures(tmp_path, references=3)
    products = str(tmp_path / "products")
    flags = ["--references", products, "--output", str(tmp_path / "shop.safetensors"), "--batch-size", "2"]
    assert make_catalogue([*flags, "--checkpoint", str(model_folder)]) == 0
    return tmp_path


def test_results_are_those_without_a_catalogue(
    shop: Path, model_folder: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(safetensors.numpy.load_file(shop / "shop.safetensors")) == 3, "the header's blanks are no damage"
    with_catalogue = pipeline.with_catalogue(shop / "shop.safetensors")
    cases = [
        (pipeline.prepare(shop / "scene-0.png", shop / "mask.png", shop / "products" / f"{number}.png"), 1, number)
        for number in range(3)
    ]
    expected = np.stack(list(pipeline.generate(cases)))

    def refuse(*_: object) -> None:
        raise AssertionError("the image encoder ran")

    with monkeypatch.context() as patch:
        patch.setattr(reference_tokens, "encode_reference", refuse)
        found = np.stack(list(with_catalogue.generate(cases)))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        write_manifest(shop, entry("a", reference=2))
        many = ["--manifest", str(shop / "cases.jsonl"), "--output-dir", str(shop / "out"), "--batch-size", "1"]
        model = ["--checkpoint", str(model_folder), "--catalogue", str(shop / "shop.safetensors")]
        assert main([*many, *model]) == 0
    alone = pipeline(shop / "scene-0.png", shop / "mask.png", shop / "products" / "2.png")[0]
    assert np.abs(pixels(shop / "out" / "a.png").astype(int) - alone).max() <= 1
    # A product that the catalogue has not: here the encoder runs.
    other = pipeline.prepare(shop / "scene-0.png", shop / "mask.png", shop / "scene-0.png")
    np.testing.assert_allclose(
        next(with_catalogue.generate([(other, 0, 0)])), next(pipeline.generate([(other, 0, 0)])), atol=1e-4
    )


def test_a_catalogue_of_another_encoder_is_refused(
    shop: Path, model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, params = load_model_folder(model_folder)
    scaled = {**params, "unet": jax.tree.map(lambda leaf: leaf * 1.5, params["unet"])}
    Pipeline.from_params(config, scaled).with_catalogue(shop / "shop.safetensors")
    for network in reference_tokens.NETWORKS:
        changed = {**params, network: jax.tree.map(lambda leaf: leaf * 1.5, params[network])}
        with pytest.raises(InputError, match="another image encoder"):
            Pipeline.from_params(config, changed).with_catalogue(shop / "shop.safetensors")
    with pytest.raises(InputError, match="arithmetic"):
        Pipeline.from_params(config, params, "bfloat16").with_catalogue(shop / "shop.safetensors")
    save_model_folder(tmp_path / "other", config, changed)
    flags = ["--scene", str(shop / "scene-0.png"), "--box", "0,0,9,9", "--reference", str(shop / "products" / "0.png")]
    flags += ["--output", str(tmp_path / "x.png"), "--checkpoint", str(tmp_path / "other")]
    capfd.readouterr()
    (shop / "text.safetensors").write_text("text")
    for name in ("shop.safetensors", "text.safetensors", "absent.safetensors", "."):
        assert main([*flags, "--catalogue", str(shop / name)]) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: catalogue") and error.count("\n") == 1, error
    assert not (tmp_path / "x.png").exists()


def test_errors_of_the_command(shop: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    good = {"references": str(shop / "products"), "output": str(shop / "new.safetensors"), "batch-size": "1"}
    (shop / "empty").mkdir()
    for change in (
        {"references": str(shop / "empty")},
        {"references": str(shop / "absent.jsonl")},
        {"output": str(shop / "new.bin")},
        {"output": str(shop / "no" / "folder.safetensors")},
        {"batch-size": "0"},
    ):
        flags = [part for name, value in {**good, **change}.items() for part in (f"--{name}", value)]
        assert make_catalogue([*flags, "--checkpoint", str(model_folder)]) == 2, change
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
    (shop / "products" / "bad.png").write_text("text")
    flags = [part for name, value in good.items() for part in (f"--{name}", value)]
    assert make_catalogue([*flags, "--checkpoint", str(model_folder)]) == 1
    captured = capfd.readouterr()
    assert "bad.png: not an image" in captured.err and "tokens of 3 references" in captured.out
    assert not list(shop.glob(".*.tmp"))
