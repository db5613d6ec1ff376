"""The exported sampler, reloaded where this package cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from dtc_jax.inference.export import batch_shapes, main
from dtc_jax.inference.generate import generate_jit, image_keys
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import sampler_settings

pytest.importorskip("flatbuffers")

ALONE = """
import sys
sys.modules["dtc_jax"] = None  # importing it fails
import numpy as np
from load import load
batch = dict(np.load(sys.argv[1]))
try:
    load(batch_size=3)
except ValueError as error:
    assert "has 2" in str(error), error
sampler = load(batch_size=2)
image = sampler(batch, seeds=[5, 2**32 - 1], image_indices=[0, 3], guidance_scale=2.5)
assert not any(name.startswith("dtc_jax.") for name in sys.modules)
np.savez(sys.argv[2], image=image, default=sampler(batch, [5, 5]))
"""


@pytest.fixture(scope="module")
def served(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "served"
    assert main(["--checkpoint", str(model_folder), "--output", str(folder), "--batch-size", "2"]) == 0
    return folder


def random_batch(pipeline: Pipeline) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = batch_shapes(pipeline.config.model, 2)
    batch = {name: random.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
    return batch | {"mask": np.asarray(batch["mask"] > 128, np.uint8)}


def test_the_same_pictures_without_the_package(served: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    batch = random_batch(pipeline)
    np.savez(tmp_path / "batch.npz", **batch)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    arguments = [sys.executable, "-c", ALONE, str(tmp_path / "batch.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(arguments, cwd=served, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    settings = sampler_settings(pipeline.config)
    keys = jax.numpy.concatenate([image_keys(5, 1), image_keys(2**32 - 1, 1, first=3)])
    expected = np.asarray(generate_jit(pipeline.params, batch, keys, np.float32(2.5), settings))
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["image"], expected, atol=1e-5)
        # Another scale (the checkpoint's 2) changes the picture of the same seed.
        assert np.abs(found["default"][0] - expected[0]).max() > 1e-4


def test_the_folder_says_what_it_is(served: Path, pipeline: Pipeline) -> None:
    signature = json.loads((served / "signature.json").read_text())
    assert signature["platforms"] == ["cpu", "cuda", "tpu"]
    assert signature["artefacts"] == {"2": "sampler-batch2.jaxexport"}
    assert signature["sampling"]["solver"] == "ddim" and signature["guidance_scale"] == 2.0
    artefact = served / signature["artefacts"]["2"]
    exported = jax.export.deserialize(bytearray(artefact.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(pipeline.params))
    # Weights are arguments: what is compiled holds none of them.
    assert len(exported.in_avals) > 100 and artefact.stat().st_size < 5e6
    assert sum(path.stat().st_size for path in (served / "weights").iterdir()) > weights
    assert "vgg.safetensors" not in os.listdir(served / "weights")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "SERVED"], "exists already"),
        (["--batch-size", "0"], "--batch-size"),
        (["--platforms", "vax"], "vax"),
        (["--guidance-scale", "-1"], "guidance_scale"),
        (["--checkpoint", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_errors_are_one_line(
    flags: list[str], message: str, served: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {"--output": str(tmp_path / "new"), "--checkpoint": str(model_folder)}
    given = [part for name, value in defaults.items() if name not in flags for part in (name, value)]
    assert main([*given, *(str(served) if part == "SERVED" else part for part in flags)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert list(tmp_path.iterdir()) == []
