"""A model folder of the `test` preset with random weights, and where the real inputs are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, SamplingConfig, TrainingConfig
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder

CONFIG = ExperimentConfig(
    name="test",
    model=presets.test(),
    sampling=SamplingConfig(num_inference_steps=2, guidance_scale=2.0),
    training=TrainingConfig(compute_dtype="float32"),
)


@pytest.fixture(scope="session", autouse=True)
def _cache_outside_the_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands switch the compile cache on; tests must not fill the user's."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("jax_cache")))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, the zero-initialised ones too, so that hint and reference both have an effect."""
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda array: (array + 0.1 * random.normal(size=array.shape)).astype(np.float32),
        DiffuseToChoose(CONFIG.model).init(jax.random.key(0)),
    )
    return save_model_folder(tmp_path_factory.mktemp("models") / "test", CONFIG, params)


@pytest.fixture(scope="session")
def pipeline(model_folder: Path) -> Pipeline:
    return Pipeline.load(model_folder)
