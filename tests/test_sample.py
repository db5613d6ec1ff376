"""sample.py as a program: it runs from any folder, its exit codes are right, and no traceback reaches the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, SamplingConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder

ROOT = Path(__file__).resolve().parents[1]


def _run(*flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), **os.environ}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "sample.py"), *flags], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_program(tmp_path: Path) -> None:
    config = ExperimentConfig(
        name="test", model=presets.test(), sampling=SamplingConfig(num_inference_steps=2, guidance_scale=2.0)
    )
    save_model_folder(tmp_path / "model", config, DiffuseToChoose(config.model).init(jax.random.key(0)))
    scene = np.random.default_rng(0).integers(0, 256, (25, 31, 3), np.uint8)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    Image.fromarray(scene[:12, :9]).save(tmp_path / "reference.png")
    inputs = ["--scene", "scene.png", "--reference", "reference.png", "--checkpoint", "model", "--output", "out.png"]

    done = _run(*inputs, "--box", "5,6,20,20", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.png\n", "")
    result = np.array(Image.open(tmp_path / "out.png"))
    assert (result[6:20, 5:20] != scene[6:20, 5:20]).any()
    result[6:20, 5:20] = scene[6:20, 5:20]
    np.testing.assert_array_equal(result, scene)

    failed = _run(*inputs, "--box", "5,6,200,20", folder=tmp_path)
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("error: box 5,6,200,20") and failed.stderr.count("\n") == 1
