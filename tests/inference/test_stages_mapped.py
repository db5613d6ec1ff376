"""The stages mapped by `jax.vmap` and on arrays that several devices share give what plain calls give."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dtc_jax import presets
from dtc_jax.config import DiffusionConfig
from dtc_jax.inference import stages
from dtc_jax.inference.settings import SamplerSettings
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from tests.models.trees import trained_tree

CASES, GROUP = 8, 2
# One level: what a lower resolution adds is the same again.
ONE_LEVEL = replace(presets.test().unet, block_out_channels=(8,), attention_levels=(True,))
SETTINGS = SamplerSettings(
    model=replace(presets.test(), unet=ONE_LEVEL), diffusion=DiffusionConfig(), num_inference_steps=4
)
# Quick to compile: these runs are shorter than the compiler's passes over machine code.
compiled = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def run(params: Any, inputs: dict[str, Any], timestep: Any) -> dict[str, Any]:
    """What every stage returns for a batch, cases first."""
    scene = stages.encode_scene(params, inputs["scene"], inputs["mask"], SETTINGS)
    tokens = stages.encode_reference(params, inputs["reference"], SETTINGS)
    conditions = stages.condition(params, scene, tokens, inputs["hint"], SETTINGS)
    features = stages.hint_features(params, conditions, jnp.stack([timestep, timestep // 2]), SETTINGS)
    now = jax.tree.map(lambda x: x[0], features)
    return {
        "encode_scene": scene,
        "encode_reference": tokens,
        # One row of each case, or two where its branches of guidance differ.
        "hint_features": jax.tree.map(lambda x: x.swapaxes(0, 1), features),
        "denoise": stages.denoise(params, conditions, inputs["latents"], timestep, SETTINGS, now),
        "decode": stages.decode(params, inputs["latents"], SETTINGS),
    }


plain = compiled(run)


@pytest.fixture(scope="module")
def params() -> Any:
    tree = trained_tree(DiffuseToChoose(SETTINGS.model).shapes())
    return {name: network for name, network in tree.items() if name != "vgg"}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    pixels = {name: random.integers(0, 256, (CASES, 16, 16, 3), np.uint8) for name in ("scene", "reference", "hint")}
    mask = np.repeat(np.repeat(random.integers(0, 2, (CASES, 4, 4, 1), np.uint8), 4, axis=1), 4, axis=2)
    return {**pixels, "mask": mask, "latents": random.standard_normal((CASES, 8, 8, 4), np.float32)}


def expected_of(params: Any, inputs: dict[str, np.ndarray], timesteps: list[int]) -> dict[str, Any]:
    """Plain calls, one group of cases after the other."""
    results = [
        plain(params, {name: x[at : at + GROUP] for name, x in inputs.items()}, jnp.int32(timestep))
        for at, timestep in zip(range(0, CASES, GROUP), timesteps, strict=True)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for stage, arrays in expected.items():
        for ours, wanted in zip(jax.tree.leaves(found[stage]), jax.tree.leaves(arrays), strict=True):
            assert ours.shape == wanted.shape and wanted.std() > 0, stage
            assert np.linalg.norm(ours - wanted) < 1e-5 * np.linalg.norm(wanted), stage


def test_mapped(params: Any, inputs: dict[str, np.ndarray]) -> None:
    """Groups of cases, each with its own timestep: what a batch cannot have."""
    timesteps = [900, 501, 250, 1]
    groups = {name: x.reshape(CASES // GROUP, GROUP, *x.shape[1:]) for name, x in inputs.items()}
    found = compiled(jax.vmap(run, in_axes=(None, 0, 0)))(params, groups, jnp.array(timesteps))
    assert_same(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found), expected_of(params, inputs, timesteps))


def test_on_several_devices(params: Any, inputs: dict[str, np.ndarray]) -> None:
    """Each device has one case; it keeps what it makes."""
    mesh = jax.make_mesh((CASES,), ("cases",), axis_types=(AxisType.Auto,))
    shares, everywhere = NamedSharding(mesh, P("cases")), NamedSharding(mesh, P())
    found = plain(jax.device_put(params, everywhere), jax.device_put(inputs, shares), jnp.int32(501))
    for stage, arrays in found.items():
        for array in jax.tree.leaves(arrays):
            rows = [shard.data.shape[0] for shard in array.addressable_shards]
            assert rows == [array.shape[0] // CASES] * CASES, stage
    assert_same(found, expected_of(params, inputs, [501] * (CASES // GROUP)))
