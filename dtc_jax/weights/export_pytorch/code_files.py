"""The code that an exported folder brings along: templates for PyTorch, and what of our own needs nothing of ours."""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

SHARED = {"dtc_metadata.py": "metadata.py", "dtc_modes.py": "modes.py", "dtc_outline.py": "outline.py"}
"""Modules of `dtc_jax.data` that need Pillow and numpy alone: the folder gets them as they are, under other names."""

PIPELINE_FILES = (
    "pipeline.py",
    "dtc_backdrop.py",
    "dtc_images.py",
    "dtc_metadata.py",
    "dtc_modes.py",
    "dtc_outline.py",
    "dtc_preprocessing.py",
    "dtc_resize.py",
    "dtc_sampler.py",
)
"""The pipeline and every module that it imports, directly or not."""


def copy_code(name: str, folder: Path) -> None:
    """Write one file of the code into a folder, under its own name."""
    if name in SHARED:
        source = importlib.resources.files("dtc_jax.data") / SHARED[name]
    else:
        source = importlib.resources.files("dtc_jax.weights.export_pytorch") / "template" / name
    with importlib.resources.as_file(source) as path:
        shutil.copyfile(path, folder / name)
