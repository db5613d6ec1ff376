"""The code that exported folders bring along, to be called piece by piece."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from dtc_jax.weights.export_pytorch.code_files import PIPELINE_FILES, copy_code

PACKAGE = "exported_code"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A package of the pipeline's modules, as a folder has them."""
    folder = tmp_path_factory.mktemp(PACKAGE)
    for name in PIPELINE_FILES:
        copy_code(name, folder)
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name in ("dtc_images", "dtc_preprocessing", "dtc_sampler", "pipeline"):
        setattr(package, name, importlib.import_module(f"{PACKAGE}.{name}"))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]
