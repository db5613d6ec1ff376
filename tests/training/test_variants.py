"""The paper's variants: each trains, starts where it must, is saved, loaded and sampled; and their sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dtc_jax.config import ExperimentConfig, OptimizerConfig
from dtc_jax.data.hints import canny_edges, stitched_scene
from dtc_jax.inference.generate import generate
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import sampler_settings
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch
from dtc_jax.training import loop, source
from dtc_jax.training.abstract import abstract_batch, abstract_params
from dtc_jax.training.initial import initial_params, needed_networks
from dtc_jax.training.objective import make_objective
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.parameters import count_parameters, main, table
from dtc_jax.training.params import split_trainable
from dtc_jax.training.sharding import make_mesh, tree_sharding
from dtc_jax.training.step import init_state, make_train_step
from dtc_jax.weights.model_folder import flatten_params, unflatten_params
from tests.training.runs import FEW_TRAINED
from tests.variants import CONFIGS, VARIANTS, at_test_size, experiment

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEY = jax.random.key(1)
TRAINED_FAST = ("sd15_cross_attention", "pbe_clip_cls")
"""Those that differ most: the slow tests train all."""
TRACED = ("sd15_hed", "sd15_latent", "pbe_clip_cls")
"""Those with other networks."""


def of_one_level(config: ExperimentConfig) -> ExperimentConfig:
    """A U-Net without a lower resolution: it compiles in half the time."""
    unet = dataclasses.replace(config.model.unet, block_out_channels=(8,), attention_levels=(True,))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, unet=unet))


@pytest.mark.parametrize("name", TRACED)
def test_step_and_sampler_need_no_other_networks(name: str) -> None:
    config = at_test_size(name)
    trainable, frozen = abstract_params(config)
    assert {path.split("/")[0] for path in (*trainable, *frozen)} == set(needed_networks(config))
    assert ("vgg" in needed_networks(config)) == (config.loss.perceptual_weight > 0)
    assert not {"hed", "vae", "reference_encoder"} & {path.split("/")[0] for path in trainable}
    objective, batch = make_objective(config), abstract_batch(config, 4)

    def loss_of(trained: dict, frozen: dict, batch: Any, step: Any) -> Any:
        return objective(unflatten_params({**frozen, **trained}), batch, KEY, step)

    gradients, metrics = jax.eval_shape(jax.grad(loss_of, has_aux=True), trainable, frozen, batch, jnp.int32(0))
    assert gradients.keys() == trainable.keys()
    assert set(metrics) == {"loss", "diffusion"} | ({"perceptual"} if config.loss.perceptual_weight > 0 else set())
    params, settings = unflatten_params({**frozen, **trainable}), sampler_settings(config)
    del batch["index"]
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 4))
    images = jax.eval_shape(lambda p, b, k: generate(p, b, k, 2.0, settings), params, batch, keys)
    assert images.shape == (4, 16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15_addition", "sd15_cross_attention"])
def test_hint_starts_without_effect_and_soon_has_one(name: str) -> None:
    config = of_one_level(at_test_size(name))
    loss = dataclasses.replace(config.loss, perceptual_weight=0.0, drop_tokens=0.0, drop_hint=0.0, drop_both=0.0)
    config = dataclasses.replace(config, loss=loss, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2))
    model, optimizer = DiffuseToChoose(config.model), make_optimizer(config.optimizer, 1000)
    flat = flatten_params(initial_params(config, jax.random.key(0)))
    trainable, frozen = split_trainable(flat, config.training.trainable)
    state, random = init_state(trainable, optimizer), np.random.default_rng(0)
    batch = {name: random.integers(0, 256, (4, 16, 16, 3), np.uint8) for name in ("scene", "reference", "hint")}
    batch |= {"mask": random.integers(0, 2, (4, 16, 16, 1), np.uint8), "index": np.arange(4, dtype=np.uint32)}

    def outputs(trained: dict) -> tuple[jax.Array, jax.Array]:
        params, images = unflatten_params({**frozen, **trained}), normalize_batch(batch, config.model)
        masked = model.encode_images(params, masked_scene(images["scene"], images["mask"]))
        times, tokens = jnp.array([900, 600, 300, 10]), model.encode_reference(params, images["reference"])
        modulations = model.modulations(params, model.hint_features(params, images["hint"], masked, times, tokens))
        inputs = (jnp.ones_like(masked), latent_mask(images["mask"], 2), masked, times, tokens)
        return model.predict(params, *inputs, modulations), model.predict(params, *inputs)

    compiled: Callable = jax.jit(outputs, compiler_options=FAST_COMPILE)
    step = jax.jit(make_train_step(config, make_objective(config), optimizer), compiler_options=FAST_COMPILE)
    hinted, plain = compiled(state.params)
    assert float(jnp.std(plain)) > 1e-2
    np.testing.assert_allclose(hinted, plain, rtol=0, atol=1e-6)
    losses = []
    for _ in range(10):
        state, metrics = step(state, frozen, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    hinted, plain = compiled(state.params)
    assert float(jnp.max(jnp.abs(hinted - plain))) > 1e-2
    still = [
        path for path in trainable if path.startswith("fusion/") and np.array_equal(trainable[path], state.params[path])
    ]
    assert not still


def test_fusions_are_split_over_devices_as_everything_is() -> None:
    mesh = make_mesh(4, jax.devices()[:4])
    for name in ("sd15_addition", "sd15_cross_attention"):
        trainable, _ = abstract_params(at_test_size(name))
        kernels = {path: leaf for path, leaf in trainable.items() if path.startswith("fusion/") and "kernel" in path}
        shardings = tree_sharding(mesh, kernels, 64)
        assert kernels and all("fsdp" in sharding.spec for sharding in shardings.values())


# ------------------------------------------------------------------------------------------------------------ the data


def drawn(seed: int, start: Any, count: int, **_: Any) -> dict[str, Any]:
    """In the place of the generated world, which takes long to compile: other pictures for every sample."""
    index = jnp.uint32(start) + jnp.arange(count, dtype=jnp.uint32)
    places = jnp.arange(16 * 16 * 3, dtype=jnp.uint32).reshape(16, 16, 3)
    scene = (places * (index[:, None, None, None] + 3) * 7919 % 251).astype(jnp.uint8)
    mask = jnp.zeros((count, 16, 16, 1), jnp.uint8).at[:, 3:13, 4:12].set(1)
    hint = scene[:, ::-1] * jnp.zeros_like(mask).at[:, 5:11, 5:11].set(1)
    return {"scene": scene, "mask": mask, "reference": scene, "hint": hint, "index": index}


def test_generated_hints_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and in what is held out: edges and stitched scenes are those of the canvas, to the bit."""
    monkeypatch.setattr(source, "sample_batch", drawn)
    mesh = make_mesh(1, jax.devices()[:2])
    plain = jax.device_get(drawn(0, 8, 8))
    edges = np.stack([canny_edges(hint) for hint in plain["hint"]])
    stitched = stitched_scene(plain["hint"], plain["scene"], plain["mask"][..., 0])
    assert edges.any() and not np.array_equal(stitched, plain["scene"])
    for name, expected in (("sd15_canny", edges), ("sd15_latent", stitched)):
        batch = source.GeneratedSource(at_test_size(name), mesh)(1)
        assert batch["hint"].sharding.is_equivalent_to(batch["scene"].sharding, 4)
        np.testing.assert_array_equal(batch["hint"], expected)
        np.testing.assert_array_equal(batch["scene"], plain["scene"])
    canvas = jax.device_get(drawn(0, 0, 2))
    held_out = source.evaluation_batch(at_test_size("sd15_canny"), 2)
    np.testing.assert_array_equal(held_out["hint"], np.stack([canny_edges(hint) for hint in canvas["hint"]]))
    held_out = source.evaluation_batch(at_test_size("sd15_latent"), 2)
    np.testing.assert_array_equal(
        held_out["hint"], stitched_scene(canvas["hint"], canvas["scene"], canvas["mask"][..., 0])
    )


def test_edges_are_made_where_each_piece_lies() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    hints = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    with jax.transfer_guard("disallow"):
        found = source.edges_on_host(jax.device_put(hints, sharding))
    assert found.sharding == sharding and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([canny_edges(hint) for hint in hints]))


# ----------------------------------------------------------------------------------------------------------- the sizes


def test_documented_parameter_counts(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sd15", *VARIANTS, "dreampaint"]
    counts = {name: count_parameters(experiment(name)) for name in names}
    documented = (CONFIGS.parent / "docs" / "variants.md").read_text()
    for line in table(counts).splitlines():
        assert line in documented
    width = (320,) * 4 + (640,) * 3 + (1280,) * 6
    assert counts["sd15_addition"].networks["fusion"] == sum(w * w + w for w in width)
    assert counts["sd15_cross_attention"].networks["fusion"] == sum(4 * w * w + 4 * w for w in width)
    assert counts["pbe_clip_cls"].networks["reference_projection"] == 366_950_912 - 303_179_776 - 768
    assert main(["pbe_dinov2"]) == 0
    assert "| pbe_dinov2 | 859,535,364 |" in capsys.readouterr().out
    assert main(["nobody"]) == 2
    assert capsys.readouterr().err.startswith("parameters: no experiment 'nobody'; there are: ")
    assert main(["--help"]) == 0 and "pbe_clip_cls" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- the whole way


@pytest.fixture
def _compiled_in_a_hurry() -> Iterator[None]:
    """As `FAST_COMPILE`, for what the training loop compiles itself."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in TRAINED_FAST else pytest.mark.slow) for name in VARIANTS]
)
@pytest.mark.usefixtures("_compiled_in_a_hurry")
def test_trains_saves_evaluates_and_samples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "sample_batch", drawn)
    # No grid: it is what the evaluation samples, compiled once more. Trained is what a variant has of its own.
    training = {"steps": 20, "batch_size": 4, "checkpoint_every": 20, "sample_every": 0, "trainable": FEW_TRAINED}
    config = of_one_level(at_test_size(name, **training, evaluate_every=20, evaluate_count=4))
    loop.train(config, tmp_path / "run", devices=jax.devices()[:1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert any(np.isfinite(value) for line in lines for key, value in line.items() if "psnr" in key)
    pipeline = Pipeline.load(tmp_path / "run")
    assert pipeline.config == config
    random = np.random.default_rng(0)
    scene, reference = (random.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(2))
    image = pipeline(scene, None, reference, box=(4, 4, 20, 20))[0]
    assert image.shape == (24, 24, 3)
    np.testing.assert_array_equal(image[:4], scene[:4])
    assert not np.array_equal(image[4:20, 4:20], scene[4:20, 4:20])
