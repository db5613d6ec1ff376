"""What every test shares: JAX's set-up, shape checking, and the optional real photographs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported. The environment may say otherwise, and processes that tests start inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Tracing makes many objects that stay, and Python's collector looks through them again and again: a fifth of the time.
gc.set_threshold(100_000, 50, 100)

import jax

import tests.shapes

# Eight virtual devices for the tests of sharding; measured to cost the other tests nothing, because a computation
# runs on the first device unless it is told otherwise. Processes that tests start do not inherit this.
jax.config.update("jax_num_cpu_devices", 8)

# Shapes and types of everything in the package are checked at run time: before the package is imported.
tests.shapes.install("dtc_jax")


def _optional_folder(name: str, variable: str, file: str) -> Path:
    """A folder that is not part of the project: named by a variable, or `shared/NAME` in or beside the checkout."""
    named = os.environ.get(variable)
    candidates = [Path(named)] if named else [folder / "shared" / name for folder in (ROOT, ROOT.parent)]
    for candidate in candidates:
        if (candidate / file).is_file():
            return candidate
    pytest.skip(f"no {file}: none in {' or '.join(map(str, candidates))}; set {variable}")


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_is_let_go() -> Iterator[None]:
    """Each file's compiled functions are its own: kept, those of all files would take gigabytes by the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def real_inputs() -> Path:
    """Folder of real photographs (scene, mask, reference) that are not part of the project, because of their licences.

    Looked for in the environment variable DTC_JAX_REAL_INPUTS, then as `shared/real_inputs` in or beside the checkout.
    """
    return _optional_folder("real_inputs", "DTC_JAX_REAL_INPUTS", "cases.json")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder of published weights (TAESD's two files) that are not part of the project.

    Looked for in the environment variable DTC_JAX_REAL_WEIGHTS, then as `shared/real_weights`, like the photographs.
    """
    return _optional_folder("real_weights", "DTC_JAX_REAL_WEIGHTS", "taesd_encoder.safetensors")
