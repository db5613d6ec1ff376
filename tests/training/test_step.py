"""The train step of the smallest experiment: what it changes, what it leaves, and that it learns.

One compiled step serves every test; the compiler optimises little, because that takes longer than the tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtc_jax.config import EMAConfig, ExperimentConfig, LossConfig, OptimizerConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch
from dtc_jax.training.command import read_config
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import make_objective
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.params import split_trainable
from dtc_jax.training.step import NonFiniteError, TrainState, check_finite, init_state, make_train_step
from dtc_jax.weights.model_folder import flatten_params, unflatten_params

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEY = jax.random.key(1)
CONFIG: ExperimentConfig = dataclasses.replace(
    read_config(Path(__file__).resolve().parents[2] / "configs" / "test.py")[0],
    loss=LossConfig(perceptual_fraction=0.5, drop_tokens=0.25, drop_hint=0.25, drop_both=0.25),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    ema=EMAConfig(decay=0.25),
)


def make_batch() -> dict[str, np.ndarray]:
    """Four scenes of a few large patches each, so that a small network can learn them."""
    random = np.random.default_rng(0)

    def patches() -> np.ndarray:
        return random.integers(0, 256, (4, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)

    mask = np.zeros((4, 16, 16, 1), np.uint8)
    mask[:, 4:12, 2:12] = 1
    return {
        "scene": patches(),
        "mask": mask,
        "reference": patches(),
        "hint": patches() * mask,
        # At step 0 with the key below each of these loses something else: nothing, tokens, hint, or both.
        "index": np.arange(52, 56, dtype=np.uint32),
    }


class Trained:
    """The compiled step and where it starts from."""

    def __init__(self) -> None:
        self.batch = make_batch()
        params = flatten_params(initial_params(CONFIG, jax.random.key(0)))
        trainable, frozen = split_trainable(params, CONFIG.training.trainable)
        self.frozen = {path: jnp.asarray(leaf) for path, leaf in frozen.items()}
        self.optimizer = make_optimizer(CONFIG.optimizer, 1000)
        self.start = init_state(trainable, self.optimizer)
        self.compiled: Any = jax.jit(
            make_train_step(CONFIG, make_objective(CONFIG), self.optimizer), compiler_options=FAST_COMPILE
        )
        self.step: Callable = lambda state, batch=self.batch: self.compiled(state, self.frozen, batch, KEY)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.fixture(scope="module")
def first_ten(trained: Trained) -> list[TrainState]:
    states = [trained.start]
    for _ in range(10):
        states.append(trained.step(states[-1])[0])
    return states


def test_frozen_networks_are_not_in_the_state(trained: Trained, first_ten: list[TrainState]) -> None:
    state = first_ten[-1]
    networks = {"unet", "hint_encoder", "hint_adapter", "fusion", "reference_projection", "null_tokens"}
    assert {path.split("/")[0] for path in state.params} == networks
    assert {path.split("/")[0] for path in trained.frozen} == {"vae", "reference_encoder", "vgg"}
    assert state.ema.keys() == state.params.keys()
    # Two moments of each trained tensor, and counters.
    sizes = sum(leaf.size for leaf in state.params.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * sizes
    names = {str(getattr(entry, "key", "")) for path, _ in jax.tree.leaves_with_path(state.opt_state) for entry in path}
    assert not names & trained.frozen.keys() and state.params.keys() <= names
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype("float32")}
    assert int(state.step) == 10


def test_every_trained_tensor_moves(trained: Trained, first_ten: list[TrainState]) -> None:
    before, after = trained.start.params, first_ten[-1].params
    assert not [path for path in before if np.array_equal(before[path], after[path])]


def test_hint_starts_without_effect(trained: Trained, first_ten: list[TrainState]) -> None:
    """The FiLM layers start as the identity, exactly, and do not stay so."""
    model = DiffuseToChoose(CONFIG.model)

    def outputs(trainable: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        params = unflatten_params({**trained.frozen, **trainable})
        images = normalize_batch(trained.batch, CONFIG.model)
        masked = model.encode_images(params, masked_scene(images["scene"], images["mask"]))
        timesteps = jnp.array([900, 600, 300, 10])
        tokens = model.encode_reference(params, images["reference"])
        modulations = model.modulations(params, model.hint_features(params, images["hint"], masked, timesteps, tokens))
        inputs = (jnp.ones_like(masked), latent_mask(images["mask"], 2), masked, timesteps, tokens)
        return model.predict(params, *inputs, modulations), model.predict(params, *inputs)

    compiled: Callable = jax.jit(outputs, compiler_options=FAST_COMPILE)
    hinted, plain = compiled(trained.start.params)
    assert float(jnp.std(plain)) > 1e-2
    np.testing.assert_allclose(hinted, plain, rtol=0, atol=1e-6)
    hinted, plain = compiled(first_ten[-1].params)
    assert float(jnp.max(jnp.abs(hinted - plain))) > 1e-2


def test_moving_average(first_ten: list[TrainState]) -> None:
    """min(d, (1 + n) / (10 + n)) of the average and the rest of the new parameters, after n updates; d = 0.25 here."""
    for path, leaf in first_ten[0].params.items():
        np.testing.assert_array_equal(first_ten[0].ema[path], leaf)
    for path in ("unet/conv_in/kernel", "null_tokens/embedding"):
        average = np.asarray(first_ten[0].params[path], np.float64)
        for decay, state in zip([1 / 10, 2 / 11, 3 / 12, 0.25, 0.25], first_ten[1:6], strict=True):
            average = decay * average + (1 - decay) * np.asarray(state.params[path])
            np.testing.assert_allclose(state.ema[path], average, rtol=1e-5, atol=1e-7)


def test_parameters_move_by_the_learning_rate(first_ten: list[TrainState]) -> None:
    """Adam's first step is the learning rate's in every direction that has a gradient: half of 1e-2 in the warm-up."""
    moved = first_ten[1].params["unet/conv_out/bias"] - first_ten[0].params["unet/conv_out/bias"]
    np.testing.assert_allclose(np.abs(moved), 5e-3, rtol=1e-2)


def test_order_of_the_batch_does_not_count(trained: Trained, first_ten: list[TrainState]) -> None:
    order = np.array([3, 2, 0, 1])
    permuted = {name: value[order] for name, value in trained.batch.items()}
    _, metrics = trained.step(first_ten[5])
    _, others = trained.step(first_ten[5], permuted)
    for name in ("loss", "diffusion", "perceptual"):
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def test_gradient_reaches_every_trained_tensor(trained: Trained) -> None:
    """Once the layers that start at zero are filled: Adam's first moment after one step is a tenth of the gradient."""
    random = np.random.default_rng(3)
    filled = {
        path: jnp.asarray(leaf + 0.1 * random.normal(size=leaf.shape), jnp.float32)
        for path, leaf in trained.start.params.items()
    }
    state, metrics = trained.step(init_state(filled, trained.optimizer))
    moments = optax.tree.get(state.opt_state, "mu")
    assert moments.keys() == filled.keys()
    # Far above what rounding makes of a gradient that is none.
    weakest = {path: float(jnp.max(jnp.abs(leaf))) for path, leaf in moments.items()}
    assert not [path for path, size in weakest.items() if size < 1e-6], min(weakest.items(), key=lambda item: item[1])
    assert float(metrics["grad_norm"]) > 0


def test_one_batch_is_learned(trained: Trained) -> None:
    """With the step's number held, noise and timesteps are the same every time: the loss must fall to 2 %."""
    state, losses = trained.start, []
    for _ in range(250):
        state, metrics = trained.step(state._replace(step=jnp.int32(0)))
        losses.append(float(metrics["diffusion"]))
    assert losses[-1] < 0.02 * losses[0], losses[::50]


def test_frozen_parameters_stay_to_the_bit(trained: Trained, first_ten: list[TrainState]) -> None:
    fresh = flatten_params(initial_params(CONFIG, jax.random.key(0)))
    assert trained.frozen and not trained.frozen.keys() & first_ten[-1].params.keys()
    for path, leaf in trained.frozen.items():
        np.testing.assert_array_equal(leaf, fresh[path], err_msg=path)


def test_one_compilation(trained: Trained, first_ten: list[TrainState]) -> None:
    assert trained.compiled._cache_size() == 1


def test_a_step_that_is_not_finite_changes_nothing(trained: Trained, first_ten: list[TrainState]) -> None:
    """Weights so large that the loss overflows, then a good step, then another two bad ones."""
    good = first_ten[5]
    bad = good._replace(
        params={**good.params, "unet/conv_out/bias": jnp.full_like(good.params["unet/conv_out/bias"], 1e30)}
    )
    after, metrics = trained.step(bad)
    assert not np.isfinite(metrics["loss"])
    for name in ("params", "ema", "opt_state"):
        before, now = jax.tree.leaves(getattr(bad, name)), jax.tree.leaves(getattr(after, name))
        for one, other in zip(before, now, strict=True):
            np.testing.assert_array_equal(one, other)
    assert (int(after.step), int(after.nonfinite_steps), int(after.nonfinite_in_a_row)) == (6, 1, 1)
    assert (float(metrics["nonfinite_steps"]), float(metrics["nonfinite_in_a_row"])) == (1, 1)

    counters = []
    for params in (good.params, bad.params, bad.params):
        after, metrics = trained.step(after._replace(params=params))
        counters.append((int(after.nonfinite_steps), int(after.nonfinite_in_a_row)))
    assert counters == [(1, 0), (2, 1), (3, 2)]
    assert trained.compiled._cache_size() == 1

    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, max_nonfinite_steps=3))
    check_finite(metrics, config)
    with pytest.raises(NonFiniteError, match=r"not finite in 3 steps in a row \(training.max_nonfinite_steps = 3\)"):
        check_finite({**metrics, "nonfinite_in_a_row": 3.0}, config)
