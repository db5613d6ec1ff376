"""What the three stages minimise, against the same computed by hand.

The diffusion and autoencoder objectives run with networks of a line each, which can be followed by hand; what is under
test is what the objective does with them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import DiffusionConfig, ExperimentConfig, LossConfig, OptimizerConfig, TrainingConfig
from dtc_jax.diffusion.timesteps import sample_timesteps
from dtc_jax.training import objective as module
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import make_objective
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.params import split_trainable
from dtc_jax.training.step import init_state, make_train_step
from dtc_jax.weights.model_folder import flatten_params

BATCH = 6
KEY = jax.random.key(5)
STEP = 3
CONFIG = ExperimentConfig(
    model=presets.test(),
    diffusion=DiffusionConfig(prediction_type="v_prediction"),
    loss=LossConfig(
        perceptual_weight=0.7,
        perceptual_fraction=0.5,
        outside_weight=0.25,
        drop_tokens=0.25,
        drop_hint=0.25,
        drop_both=0.25,
    ),
    training=TrainingConfig(compute_dtype="float32"),
)
PERCEPTUAL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)


class Networks:
    """Stands in for `DiffuseToChoose`: every network is one line, of jax.numpy and of numpy alike."""

    def __init__(self, config: Any, dtype: Any, remat: str = "none") -> None:
        self.config = config

    def encode_images(self, params: Any, images: Any, keys: Any = None) -> Any:
        latents = images[:, ::2, ::2, np.array([0, 1, 2, 0])] * np.array([1.0, 0.5, -1.0, 0.25], np.float32)
        return (
            latents if keys is None else latents + jax.vmap(lambda key: 0.3 * jax.random.normal(key, (8, 8, 4)))(keys)
        )

    def encode_reference(self, params: Any, reference: Any) -> Any:
        return reference.mean((1, 2))[:, None, :]

    def drop_tokens(self, params: Any, tokens: Any, keep: Any) -> Any:
        return keep[:, None, None] * tokens

    def hint_features(self, params: Any, hint: Any, masked_latents: Any, timesteps: Any, tokens: Any) -> Any:
        return hint.mean((1, 2, 3)) + tokens.mean((1, 2))

    def modulations(self, params: Any, features: Any, keep: Any) -> Any:
        return keep * features

    def predict(self, params: Any, noisy: Any, mask: Any, masked: Any, timesteps: Any, tokens: Any, hint: Any) -> Any:
        extra = tokens.mean((1, 2)) - 2 * hint + timesteps / 500
        return params["a"] * noisy + 0.3 * mask - 0.2 * masked + extra[:, None, None, None]

    def decode_latents(self, params: Any, latents: Any) -> Any:
        return 0.5 * latents[..., :3]

    def vgg_features(self, params: Any, images: Any) -> Any:
        return [(level + 1) * images[:, :8, :8] for level in range(5)]

    def vae_posterior(self, params: Any, images: Any) -> Any:
        return self.encode_images(params, images), -1 - self.encode_images(params, images) ** 2

    def vae_decode(self, params: Any, latents: Any) -> Any:
        return params["a"] * latents.repeat(2, 1).repeat(2, 2)[..., :3]


def make_batch(count: int = BATCH, first: int = 100) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    batch = {name: random.integers(0, 256, (count, 16, 16, 3), np.uint8) for name in ("scene", "reference", "hint")}
    # References and hints that differ between samples, so that losing one is seen.
    for name in ("reference", "hint"):
        batch[name] = (batch[name] * np.linspace(0.2, 1, count)[:, None, None, None]).astype(np.uint8)
    batch["mask"] = (random.random((count, 16, 16, 1)) < np.linspace(0.1, 0.9, count)[:, None, None, None]).astype(
        np.uint8
    )
    return {**batch, "index": np.arange(first, first + count, dtype=np.uint32)}


@functools.cache
def compiled(config: ExperimentConfig) -> Callable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DiffuseToChoose", Networks)
        return jax.jit(make_objective(config))


def evaluate(
    config: ExperimentConfig, batch: dict[str, Any] | None = None, step: int = STEP, key: Any = KEY
) -> dict[str, float]:
    loss, metrics = compiled(config)({"a": jnp.float32(0.6)}, batch or make_batch(), key, jnp.int32(step))
    assert float(loss) == float(metrics["loss"])
    return {name: float(value) for name, value in metrics.items()}


def change(**loss: Any) -> ExperimentConfig:
    return dataclasses.replace(CONFIG, loss=dataclasses.replace(CONFIG.loss, **loss))


def by_hand(kind: str = "v_prediction", loss: LossConfig = CONFIG.loss) -> dict[str, float]:
    """The objective in numpy, float64; only the random numbers come from JAX."""
    batch, model = make_batch(), Networks(None, None)
    step_key = jax.random.fold_in(KEY, STEP)
    keys = [jax.random.split(jax.random.fold_in(step_key, index), 3) for index in batch["index"]]
    noise = np.stack([jax.random.normal(key[0], (8, 8, 4)) for key in keys]).astype(np.float64)
    posterior = np.stack([0.3 * jax.random.normal(key[1], (8, 8, 4)) for key in keys]).astype(np.float64)
    u = np.array([jax.random.uniform(key[2]) for key in keys])
    # With stratified timesteps each pair of samples has one of each half: the least noisy of the pairs are the least
    # noisy of the batch.
    spread = {0.5: 2, 1.0: 1}[loss.perceptual_fraction]
    timesteps = np.asarray(
        sample_timesteps(step_key, batch["index"], 1000, loss.stratified_timesteps, loss.timestep_shift, spread)
    )

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.sqrt(np.cumprod(1 - betas))[timesteps][:, None, None, None]
    sigma = np.sqrt(1 - signal**2)
    scene, mask = batch["scene"] / 127.5 - 1, batch["mask"].astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    latents = model.encode_images(None, scene) + posterior
    masked = model.encode_images(None, scene * (1 - mask))
    latent_mask = mask[:, ::2, ::2]
    noisy = signal * latents + sigma * noise
    keep_tokens = np.array([0 if value < 0.5 else 1 for value in u])
    keep_hint = np.array([0 if value < 0.25 or 0.5 <= value < 0.75 else 1 for value in u])
    assert len({*zip(keep_tokens, keep_hint, strict=True)}) > 2, "the seed should drop several things"
    tokens = model.drop_tokens(None, ((batch["reference"] / 255 - mean) / std).mean((1, 2))[:, None], keep_tokens)
    hint = model.modulations(None, (batch["hint"] / 255).mean((1, 2, 3)) + tokens.mean((1, 2)), keep_hint)
    output = model.predict({"a": 0.6}, noisy, latent_mask, masked, timesteps, tokens, hint)

    target = {"v_prediction": signal * noise - sigma * latents, "epsilon": noise, "sample": latents}[kind]
    x0_hat = {
        "v_prediction": signal * noisy - sigma * output,
        "epsilon": (noisy - sigma * output) / signal,
        "sample": output,
    }[kind]
    diffusion = 0.0
    for sample in range(BATCH):
        inside = latent_mask[sample, :, :, 0] > 0
        error = ((output - target)[sample] ** 2).mean(-1)
        total = inside.sum() + loss.outside_weight * (~inside).sum()
        diffusion += (error[inside].sum() + loss.outside_weight * error[~inside].sum()) / total / BATCH
    count = round(BATCH * loss.perceptual_fraction)
    perceptual = 0.0
    for sample in np.argsort(timesteps)[:count]:
        difference = np.abs(0.5 * x0_hat[sample, :, :, :3] - scene[sample, :8, :8]).mean()
        perceptual += sum(w * (level + 1) for level, w in enumerate(PERCEPTUAL_WEIGHTS)) * difference / count
    return {
        "diffusion": diffusion,
        "perceptual": perceptual,
        "loss": diffusion + loss.perceptual_weight * perceptual,
    }


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_diffusion_by_hand(kind: Any) -> None:
    config = dataclasses.replace(CONFIG, diffusion=DiffusionConfig(prediction_type=kind))
    assert evaluate(config) == pytest.approx(by_hand(kind), rel=2e-5)


def test_other_weights_by_hand() -> None:
    config = change(
        outside_weight=3.0,
        perceptual_weight=0.01,
        perceptual_fraction=1.0,
        stratified_timesteps=False,
        timestep_shift=3.0,
    )
    assert evaluate(config) == pytest.approx(by_hand(loss=config.loss), rel=2e-5)


def test_without_perceptual_loss() -> None:
    metrics = evaluate(change(perceptual_weight=0.0))
    assert set(metrics) == {"diffusion", "loss"} and metrics["loss"] == metrics["diffusion"]
    assert metrics["diffusion"] == pytest.approx(evaluate(CONFIG)["diffusion"], rel=1e-6)


def test_order_of_the_batch_does_not_count() -> None:
    """Random numbers belong to the samples: however a batch is put together, its loss is the same.

    (The samples that share a group of the perceptual term stay together.)
    """
    batch, order = make_batch(), np.array([3, 2, 4, 5, 1, 0])
    permuted = {name: value[order] for name, value in batch.items()}
    assert evaluate(CONFIG, permuted) == pytest.approx(evaluate(CONFIG, batch), rel=1e-6)


def test_key_step_and_index_decide() -> None:
    base = evaluate(CONFIG)
    assert evaluate(CONFIG) == base
    others = [
        evaluate(CONFIG, step=4),
        evaluate(CONFIG, key=jax.random.key(6)),
        evaluate(CONFIG, make_batch(first=101)),
    ]
    losses = [base["diffusion"], *(other["diffusion"] for other in others)]
    assert len({round(loss, 4) for loss in losses}) == 4, losses


@pytest.mark.parametrize("name", ["drop_tokens", "drop_hint", "drop_both"])
def test_dropout_has_an_effect(name: str) -> None:
    none = {"drop_tokens": 0.0, "drop_hint": 0.0, "drop_both": 0.0}
    batch = make_batch()
    changed = {**batch, "hint": 255 - batch["hint"]}
    references = {**batch, "reference": 255 - batch["reference"]}
    config = change(**{**none, name: 1.0})
    # What is dropped for all samples does not count any more, and what is not still does.
    base = evaluate(config, batch)["loss"]
    assert (evaluate(config, changed)["loss"] == base) == (name != "drop_tokens")
    assert (evaluate(config, references)["loss"] == base) == (name != "drop_hint")
    assert base != evaluate(change(**none), batch)["loss"]


def test_the_autoencoder_gets_no_gradient() -> None:
    class Scaled(Networks):
        def encode_images(self, params: Any, images: Any, keys: Any = None) -> Any:
            return params["vae"] * super().encode_images(params, images, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DiffuseToChoose", Scaled)
        objective = make_objective(CONFIG)
    params = {"a": jnp.float32(0.6), "vae": jnp.float32(1.0)}
    gradients, _ = jax.jit(jax.grad(objective, has_aux=True))(params, make_batch(), KEY, jnp.int32(STEP))
    assert gradients["vae"] == 0 and abs(gradients["a"]) > 1e-3


def test_autoencoder_by_hand() -> None:
    config = dataclasses.replace(change(kl_weight=0.02, absolute_weight=0.3), stage="autoencoder")
    batch, model = make_batch(), Networks(None, None)
    scene, mask = batch["scene"] / 127.5 - 1, batch["mask"]
    # Every third sample has its hole greyed: 100 % 3 = 1, so that these are 102 and 105.
    pictures = np.stack([scene[i] * (1 - mask[i]) if i in (2, 5) else scene[i] for i in range(BATCH)])
    mean, logvar = model.vae_posterior(None, pictures)
    step_key = jax.random.fold_in(KEY, STEP)
    noise = np.stack([jax.random.normal(jax.random.fold_in(step_key, i), (8, 8, 4)) for i in batch["index"]])
    error = model.vae_decode({"a": 0.6}, mean + np.exp(logvar / 2) * noise) - pictures
    squared, absolute = (error**2).mean(), np.abs(error).mean()
    kl = (mean**2 + np.exp(logvar) - 1 - logvar).mean() / 2
    expected = {
        "loss": squared + 0.3 * absolute + 0.02 * kl,
        # Of images in [0, 1]: half the error of those in [-1, 1].
        "psnr": -10 * np.log10(((error / 2) ** 2).mean()),
        "kl": kl,
        "absolute": absolute,
    }
    assert evaluate(config) == pytest.approx(expected, rel=2e-5)


def train(config: ExperimentConfig, batch: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """Metrics of some steps on one batch."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    trainable, frozen = split_trainable(flatten_params(initial_params(config, KEY)), config.training.trainable)
    optimizer = make_optimizer(config.optimizer, steps)
    step: Callable = jax.jit(make_train_step(config, make_objective(config), optimizer), compiler_options=options)
    state, history = init_state(trainable, optimizer), []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, KEY)
        history.append({name: float(value) for name, value in metrics.items()})
    return history


def test_vgg_learns_labels() -> None:
    config = dataclasses.replace(
        CONFIG,
        stage="vgg",
        optimizer=OptimizerConfig(learning_rate=1e-2),
        training=dataclasses.replace(CONFIG.training, trainable="^(vgg|heads)/"),
    )
    random = np.random.default_rng(1)
    labels = {name: random.integers(0, 3, BATCH) for name in ("silhouette", "pattern", "wall", "floor", "support")}
    labels |= {"colors": random.integers(0, 5, (BATCH, 4)), "logo": random.integers(0, 2, (BATCH, 25)) * np.float32(1)}
    history = train(config, {**make_batch(), "labels": labels}, steps=40)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["silhouette"] > 0.8


def test_classification_by_hand() -> None:
    from dtc_jax.training.classifier import classification_losses

    random = np.random.default_rng(0)
    logits = {"a": random.normal(size=(4, 6)), "b": random.normal(size=(4, 3)), "logo": random.normal(size=(4, 5))}
    logits = {name: jnp.asarray(value, jnp.float32) for name, value in logits.items()}
    labels = {
        "a": jnp.asarray(random.integers(0, 3, (4, 2))),
        "b": jnp.asarray(random.integers(0, 3, 4)),
        "logo": jnp.asarray(random.integers(0, 2, (4, 5)), jnp.float32),
    }
    loss, accuracy = classification_losses(logits, labels)
    two = np.asarray(logits["a"]).reshape(4, 2, 3)
    one = np.asarray(logits["b"])
    sigmoid = 1 / (1 + np.exp(-np.asarray(logits["logo"])))

    def cross_entropy(values: np.ndarray, label: Any) -> float:
        chances = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        return float(-np.log(np.take_along_axis(chances, np.asarray(label)[..., None], -1)).mean())

    binary = -np.where(np.asarray(labels["logo"]) > 0, np.log(sigmoid), np.log(1 - sigmoid)).mean()
    expected = (cross_entropy(two, labels["a"]) + cross_entropy(one, labels["b"]) + binary) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy["b"]) == pytest.approx((one.argmax(-1) == np.asarray(labels["b"])).mean())
    assert float(accuracy["logo"]) == pytest.approx(((sigmoid > 0.5) == (np.asarray(labels["logo"]) > 0)).mean())


def test_autoencoder_learns() -> None:
    config = dataclasses.replace(
        CONFIG,
        stage="autoencoder",
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        training=dataclasses.replace(CONFIG.training, trainable="^vae/"),
    )
    batch = make_batch()
    coarse = np.random.default_rng(2).integers(0, 256, (BATCH, 4, 4, 3), np.uint8)
    batch["scene"] = coarse.repeat(4, 1).repeat(4, 2)
    history = train(config, batch, steps=40)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["psnr"] > history[0]["psnr"] + 3
