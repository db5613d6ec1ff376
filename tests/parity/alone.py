"""Sampling from an exported folder in a process that can import nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = """
import json
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dtc_jax", "jax", "flax", "cv2"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
try:
    import dtc_jax
except ImportError:
    pass
else:
    sys.exit("dtc_jax can be imported: this would prove nothing")
import numpy as np, torch
from diffusers import DiffusionPipeline
from PIL import Image

options = json.loads(sys.argv[1])
pipe = DiffusionPipeline.from_pretrained(options["folder"], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = [Image.open(path) for path in options["files"]]
arguments = {"num_inference_steps": options["steps"]}
image = pipe(*images, generator=torch.Generator().manual_seed(0), **arguments).images[0]
assert image.size == images[0].size
results = {"seeded": np.asarray(image)}
if options["noise"] is not None:
    latents = torch.from_numpy(np.load(options["noise"])).permute(0, 3, 1, 2)
    results["window"] = pipe(*images, latents=latents, output_type="window", **arguments).images[0]
    results["image"] = np.asarray(pipe(*images, latents=latents, **arguments).images[0])
np.savez(options["output"], **results)
"""


def sample_alone(
    folder: Path,
    output: Path,
    files: Sequence[Path],
    *,
    steps: int | None = None,
    noise: Path | None = None,
    timeout: float = 300,
) -> None:
    """Sample from files in PyTorch alone.

    Args:
        folder: The exported folder.
        output: .npz to write: `seeded`, the image (H, W, 3, uint8) of a generator with seed 0; with `noise` also
            `window`, what the model generated (float32, [0, 1]), and `image`, that put back.
        files: Scene, mask, reference.
        steps: Of the solver; None takes the folder's.
        noise: .npy with the latents to start from, channels last.
        timeout: In seconds.

    Raises:
        AssertionError: the process failed; has the end of what it said.
    """
    options = {
        "folder": str(folder),
        "output": str(output),
        "files": [str(file) for file in files],
        "steps": steps,
        "noise": None if noise is None else str(noise),
    }
    environment = {**os.environ, "HF_MODULES_CACHE": str(output.parent / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-I", "-c", _SCRIPT, json.dumps(options)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=output.parent
    )
    assert result.returncode == 0, result.stderr[-2000:]
