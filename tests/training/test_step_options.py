"""The train step's options for little memory change what is kept, not what is computed."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtc_jax.config import ConfigError, EMAConfig, ExperimentConfig, LossConfig, TrainingConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import masked_scene, normalize_batch
from dtc_jax.training.command import read_config
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import Objective, make_objective
from dtc_jax.training.params import split_trainable
from dtc_jax.training.placement import place
from dtc_jax.training.sharding import batch_sharding, make_mesh
from dtc_jax.training.step import TrainState, divide, init_state, make_train_step
from dtc_jax.weights.model_folder import flatten_params, unflatten_params
from tests.training.test_perceptual import largest_moved

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEY = jax.random.key(1)
BATCH = 8
EXPERIMENT = read_config(Path(__file__).resolve().parents[2] / "configs" / "test.py")[0]
# Of one level: it compiles in half the time.
UNET = dataclasses.replace(EXPERIMENT.model.unet, block_out_channels=(8,), attention_levels=(True,))
CONFIG: ExperimentConfig = dataclasses.replace(
    EXPERIMENT,
    model=dataclasses.replace(EXPERIMENT.model, unet=UNET),
    loss=LossConfig(
        perceptual_weight=0.5,
        perceptual_fraction=0.5,
        perceptual_max_timestep=400,
        drop_tokens=0.2,
        drop_hint=0.2,
        drop_both=0.2,
    ),
)


def change(**training: Any) -> ExperimentConfig:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **training))


def make_batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    batch = {name: random.integers(0, 256, (BATCH, 16, 16, 3), np.uint8) for name in ("scene", "reference", "hint")}
    batch["mask"] = (random.random((BATCH, 16, 16, 1)) < 0.3).astype(np.uint8)
    return {**batch, "index": np.arange(48, 48 + BATCH, dtype=np.uint32)}


@functools.cache
def parameters() -> tuple[dict[str, Any], dict[str, Any]]:
    """Trainable and frozen; the layers that start at zero are filled, so that every gradient is one."""
    flat = flatten_params(initial_params(CONFIG, jax.random.key(0)))
    random = np.random.default_rng(3)
    filled = {path: np.float32(leaf + 0.1 * random.normal(size=leaf.shape)) for path, leaf in flat.items()}
    return split_trainable(filled, CONFIG.training.trainable)


@functools.cache
def descent(config: ExperimentConfig) -> tuple[TrainState, dict[str, float]]:
    """One step of plain descent: the parameters move by the gradient."""
    trainable, frozen = parameters()
    optimizer = optax.sgd(1.0)
    step = jax.jit(make_train_step(config, make_objective(config), optimizer), compiler_options=FAST_COMPILE)
    state, metrics = step(init_state(trainable, optimizer, config.ema.enabled), frozen, make_batch(), KEY)
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"accumulation_steps": 2, "remat": "block"},
        pytest.param({"accumulation_steps": 4}, marks=pytest.mark.slow),
        pytest.param({"remat": "products"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_same_gradient(options: dict[str, Any]) -> None:
    state, metrics = descent(change(**options))
    expected, expected_metrics = descent(CONFIG)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)
    assert expected_metrics["perceptual"] > 0
    start, scale = parameters()[0], expected_metrics["grad_norm"]
    for path, leaf in expected.params.items():
        np.testing.assert_allclose(state.params[path], leaf, rtol=0, atol=1e-5 * scale, err_msg=path)
        assert not np.array_equal(leaf, start[path])


def test_parts_of_a_batch() -> None:
    """In turns, groups together: every device, which has a run of rows, has its share of each part."""
    batch = {"index": jnp.arange(16), "share": jnp.ones(16)}
    assert divide(batch, 2, 1)["index"].tolist() == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert divide(batch, 2, 4)["index"].tolist() == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    with pytest.raises(ConfigError, match=r"batch_size = 16 must be a multiple of .* = 3 times 1"):
        divide(batch, 3, 1)
    with pytest.raises(ConfigError, match=r"not divisible by training.accumulation_steps = 3"):
        TrainingConfig(batch_size=16, accumulation_steps=3)


def test_parts_stay_on_their_devices() -> None:
    """A sum over parts, as the step makes it: nothing but sums moves between eight devices."""
    sharding = batch_sharding(make_mesh(1, jax.devices()[:8]))
    pictures = jax.ShapeDtypeStruct((32, 16, 16, 3), jnp.float32, sharding=sharding)
    share = jax.ShapeDtypeStruct((32,), jnp.float32, sharding=sharding)

    def total(pictures: jax.Array, share: jax.Array, parts: int) -> jax.Array:
        divided = divide({"pictures": pictures, "share": share}, parts, 1)
        if parts == 16:  # two rows to a part, eight devices: a control
            divided = {name: leaf.reshape(16, 2, *leaf.shape[2:]) for name, leaf in divided.items()}

        def add(sum: jax.Array, part: Any) -> tuple[jax.Array, None]:
            return sum + (part["share"] * jnp.tanh(part["pictures"]).mean((1, 2, 3))).sum(), None

        return jax.lax.scan(add, jnp.zeros(()), divided)[0]

    moved = {}
    for parts in (4, 16):
        compiled = jax.jit(functools.partial(total, parts=parts)).lower(pictures, share).compile()
        moved[parts] = largest_moved(compiled.as_text())
    assert moved[4] < 100 < moved[16], moved


@pytest.mark.parametrize("remat, fewer", [("none", 1.0), ("products", 0.9), ("block", 0.7)])
def test_what_the_backward_pass_keeps(remat: Any, fewer: float) -> None:
    """Elements that go from the forward to the backward pass, against those without rematerialisation."""

    def kept(config: ExperimentConfig) -> int:
        trainable, frozen = parameters()
        objective = make_objective(config)
        drawn = jax.eval_shape(lambda: objective.draw(make_batch(), KEY, jnp.int32(0)))

        def residuals(trainable: Any, drawn: Any) -> Any:
            return jax.vjp(lambda t: objective.loss(unflatten_params({**frozen, **t}), drawn)[0], trainable)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(residuals, trainable, drawn)))

    weights = sum(leaf.size for leaf in parameters()[0].values())
    assert kept(change(remat=remat)) - weights <= fewer * (kept(CONFIG) - weights)


def test_one_pass_of_the_unet() -> None:
    """Forward and backward, with the perceptual loss: the U-Net's first convolution is applied once."""
    trainable, frozen = parameters()
    optimizer = optax.sgd(1.0)
    step = make_train_step(CONFIG, make_objective(CONFIG), optimizer)
    jaxpr = jax.make_jaxpr(step)(init_state(trainable, optimizer), frozen, make_batch(), KEY)
    convolutions = [e.invars for e in _equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
    # No other convolution has nine channels of input.
    reads = [x for x, kernel in convolutions if (x.aval.shape, kernel.aval.shape[2]) == ((BATCH, 8, 8, 9), 9)]
    assert len(reads) == 1 and len(convolutions) > 50


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _equations(getattr(inner, "jaxpr", inner))


def small(loss: Any) -> Objective:
    """An objective of a line, over one parameter."""
    return Objective(
        lambda batch, key, step: {**batch, "share": jnp.full(4, 0.25)},
        lambda params, batch: (loss(params["a"], batch["x"]), {"loss": loss(params["a"], batch["x"])}),
    )


def small_step(config: ExperimentConfig, loss: Any) -> tuple[TrainState, TrainState, dict[str, Any]]:
    optimizer = optax.sgd(1.0)
    state = init_state({"a": np.float32(0.0)}, optimizer, config.ema.enabled)
    return state, *make_train_step(config, small(loss), optimizer)(state, {}, {"x": jnp.ones(4)}, KEY)


def test_without_a_moving_average() -> None:
    start, state, _ = small_step(dataclasses.replace(CONFIG, ema=EMAConfig(enabled=False)), lambda a, x: (a * x).sum())
    assert start.ema == state.ema == {} and state.averaged is state.params
    assert float(state.params["a"]) == -4
    start, state, _ = small_step(CONFIG, lambda a, x: (a * x).sum())
    assert state.ema.keys() == state.params.keys() and state.averaged is state.ema


def test_finite_loss_with_a_gradient_that_is_not() -> None:
    _, state, metrics = small_step(CONFIG, lambda a, x: jnp.sqrt(a * x).sum())
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert (float(state.params["a"]), int(state.nonfinite_steps), int(state.step)) == (0, 1, 1)


def test_frozen_networks_in_half_the_memory() -> None:
    config = change(frozen_dtype="bfloat16")
    trainable, frozen = parameters()
    mesh = make_mesh(1, jax.devices()[:1])
    _, state, placed = place(config, mesh, dict(trainable), dict(frozen))
    assert {leaf.dtype for leaf in placed.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in state.params.values()} == {jnp.dtype("float32")}
    for path, leaf in placed.items():
        np.testing.assert_array_equal(np.asarray(leaf), frozen[path].astype(jnp.bfloat16))
    # The caller's own arrays are as they were: the step may donate those of the state.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, placed)))


def test_cached_conditions_give_the_same_loss() -> None:
    """Tokens and latents that come with the batch, where the networks that made them are gone."""
    trainable, frozen = parameters()
    model, batch = DiffuseToChoose(CONFIG.model), make_batch()
    config = dataclasses.replace(
        change(sample_every=0), data=dataclasses.replace(CONFIG.data, cached=("tokens", "latents"))
    )
    networks = {path.split("/")[0] for path in initial_flat(config)}
    assert "reference_encoder" not in networks and "vae" in networks

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def cache(frozen: Any) -> dict[str, Any]:
        params, images = unflatten_params(frozen), normalize_batch(batch, CONFIG.model)
        mean, logvar = model.vae_posterior(params, images["scene"])
        return {
            "tokens": model.reference_features(params, images["reference"]),
            "latent_mean": mean,
            "latent_logvar": logvar,
            "masked_latents": model.encode_images(params, masked_scene(images["scene"], images["mask"])),
        }

    cached = {name: value for name, value in batch.items() if name != "reference"} | cache(frozen)
    kept = {p: leaf for p, leaf in frozen.items() if not p.startswith(("reference_encoder/", "vae/encoder"))}
    objective = jax.jit(make_objective(config), compiler_options=FAST_COMPILE)
    params = unflatten_params({**kept, **trainable})
    loss, _ = objective(params, cached, KEY, jnp.int32(0))
    assert float(loss) == pytest.approx(descent(CONFIG)[1]["loss"], rel=1e-4)

    with pytest.raises(ValueError, match=r"data\.cached names tokens, but the batches have no tokens"):
        jax.eval_shape(objective, params, batch, KEY, jnp.int32(0))
    with pytest.raises(ValueError, match=r"tokens are 5x7; this reference encoder makes \(5, 16\)"):
        jax.eval_shape(objective, params, {**cached, "tokens": jnp.zeros((BATCH, 5, 7))}, KEY, jnp.int32(0))


def initial_flat(config: ExperimentConfig) -> dict[str, Any]:
    return flatten_params(initial_params(config, jax.random.key(0)))
