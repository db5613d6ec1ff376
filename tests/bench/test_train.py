"""`bench train`: both sides train the same model; what is printed; errors of use."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.bench.train import made_up_batch, main, table, unlike
from dtc_jax.config import ExperimentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainingConfig
from dtc_jax.diffusion.randomness import per_sample_normal
from dtc_jax.models.inputs import normalize_batch
from dtc_jax.training.conditions import condition_dropout
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import make_objective
from dtc_jax.training.params import split_trainable
from dtc_jax.weights import vgg
from dtc_jax.weights.export_pytorch.networks import exported_networks
from dtc_jax.weights.layouts import Layout
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.model_folder import flatten_params
from tests.training.runs import FAST_COMPILE, ROOT

KEY = jax.random.key(0)


def experiment() -> ExperimentConfig:
    return ExperimentConfig(
        model=presets.test(),
        loss=LossConfig(
            perceptual_weight=0.3, perceptual_fraction=0.5, outside_weight=0.2, drop_tokens=0.4, drop_hint=0.4
        ),
        training=TrainingConfig(batch_size=2, compute_dtype="float32", sample_every=0),
    )


def nchw(array: Any) -> Any:
    import torch

    values = np.array(array)
    return torch.from_numpy(np.moveaxis(values, -1, 1).copy() if values.ndim == 4 else values)


def load(model: Any, params: dict[str, Any], config: ModelConfig, scratch: Path) -> None:
    """Our parameters into PyTorch's modules; every tensor must be there."""
    import torch
    import transformers
    from safetensors.torch import save_file

    def tensors(layout: Layout, network: str) -> dict[str, Any]:
        exported = export_tensors(layout, flatten_params(params[network]))
        return {tensor.name: torch.from_numpy(np.array(tensor.read())) for tensor in exported}

    for network in exported_networks(config):
        state = tensors(network.layout, network.network)
        if network.library == "transformers":  # whose modules have other names inside than in files
            save_file(state, scratch / "model.safetensors", metadata={"format": "pt"})
            (scratch / "config.json").write_text(json.dumps(network.config_json()))
            state = transformers.Dinov2Model.from_pretrained(scratch).state_dict()
        model.networks[network.network].load_state_dict(state, strict=True)
    ours = tensors(vgg.TORCHVISION, "vgg")
    layers = [layer for block in model.networks["vgg"].blocks for layer in block]
    numbers = sorted({int(name.split(".")[1]) for name in ours})
    for layer, number in zip(layers, numbers, strict=True):
        layer.load_state_dict({part: ours[f"features.{number}.{part}"] for part in ("weight", "bias")})


@pytest.mark.timeout(600)
def test_both_sides_have_the_same_loss(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from dtc_jax.bench.pytorch_train import make_step

    config = experiment()
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * random.standard_normal(leaf.shape, np.float32), initial_params(config, KEY)
    )
    batch = made_up_batch(config)
    objective = make_objective(config)
    draw = jax.jit(objective.draw)
    # One of the two samples loses its tokens, the other its hint.
    draws = ((step, draw(batch, KEY, jnp.int32(step))) for step in range(100))
    at, drawn = next((at, drawn) for at, drawn in draws if drawn["dropout"].min() < 0.4 < drawn["dropout"].max() < 0.8)
    images = normalize_batch(batch, config.model)
    shape = (8, 8, 4)
    keep_tokens, keep_hint = condition_dropout(drawn["dropout"], config.loss)
    assert {float(keep_tokens.sum()), float(keep_hint.sum())} == {1.0}
    theirs = {name: nchw(images[name]) for name in ("scene", "mask", "hint", "reference")} | {
        "noise": nchw(per_sample_normal(drawn["noise_key"], shape)),
        "posterior_noise": nchw(jax.vmap(lambda key: jax.random.normal(key, shape))(drawn["posterior_key"])),
        "timestep": nchw(drawn["timestep"]).long(),
        "keep_tokens": nchw(keep_tokens),
        "keep_hint": nchw(keep_hint),
    }
    model, step = make_step(config, torch.device("cpu"), compiled=False)
    load(model, params, config.model, tmp_path)
    loss = step(theirs).item()
    expected = jax.jit(objective)(params, batch, KEY, jnp.int32(at))[1]
    assert float(expected["perceptual"]) > 1e-3
    np.testing.assert_allclose(loss, float(expected["loss"]), rtol=1e-4)
    # As many numbers are trained, and the step has moved them.
    trained, _ = split_trainable(flatten_params(params), config.training.trainable)
    theirs_trained = [value for value in model.parameters() if value.requires_grad]
    assert sum(value.numel() for value in theirs_trained) == sum(leaf.size for leaf in trained.values())
    assert step(theirs).item() != loss


def test_what_pytorch_cannot_do_is_not_compared() -> None:
    config = experiment()
    assert unlike(config) is None
    others = {
        "training.remat": dataclasses.replace(config, training=TrainingConfig(remat="block")),
        "loss.perceptual_window": dataclasses.replace(config, loss=LossConfig(perceptual_window=8)),
        "loss.min_snr_gamma": dataclasses.replace(config, loss=LossConfig(min_snr_gamma=5.0)),
        "optimizer.moments_dtype": dataclasses.replace(config, optimizer=OptimizerConfig(moments_dtype="bfloat16")),
        "model.vae": dataclasses.replace(config, model=presets.tiny()),
    }
    for name, other in others.items():
        assert name in (unlike(other) or "")


def test_table() -> None:
    result = {"seconds": 0.5, "images_per_second": 8.0, "mfu": 0.4321, "memory": 2**31}
    slower = {"seconds": 1.0, "images_per_second": 4.0, "mfu": None, "memory": None}
    report: dict[str, Any] = {
        "experiment": "sd15",
        "device": "Abacus",
        "devices": 1,
        "batch_size": 4,
        "image_size": 512,
        "compute_dtype": "bfloat16",
        "steps": 20,
        "rows": {"jax": {"with": slower, "without": result}, "pytorch": {"with": result, "without": slower}},
        "pytorch_skipped": None,
        "versions": {"jax": "1"},
        "revision": "abc",
        "command": "python -m dtc_jax.bench train",
    }
    text = table(report)
    assert "1 x Abacus: batch 4, 512 pixels" in text and "43.2%" in text and "2.0 GiB" in text
    (with_loss, without) = [line for line in text.splitlines() if line.startswith("jax / pytorch")]
    assert " 0.50 x" in with_loss and " 2.00 x" in without
    del report["rows"]["pytorch"]
    assert "pytorch: not measured, no device" in table({**report, "pytorch_skipped": "no device"})


def test_errors_of_use_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "no experiment 'absent'": ("absent",),
        "--steps must be at least 1": ("test", "--steps", "0"),
        "has no perceptual loss": ("tiny_autoencoder",),
        "--pytorch yes: the PyTorch side knows only none for training.remat": (
            "test",
            *("--pytorch", "yes", "--training.remat", "block"),
        ),
    }
    for message, words in cases.items():
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
def test_the_command() -> None:
    command = ["-m", "dtc_jax.bench", "train", "test", "--batch-size", "2", "--steps", "2"]
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command, "--pytorch", "yes", "--no-compile", "--json"],
        cwd=Path(ROOT),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for name in ("with", "without"):
        ours, theirs = (report["rows"][row][name] for row in ("jax", "pytorch"))
        assert ours["trained"] == theirs["trained"] > 0 and ours["frozen"] == theirs["frozen"]
        assert ours["images_per_second"] > 0 and theirs["images_per_second"] > 0
    assert report["flops_per_image"]["with"] > report["flops_per_image"]["without"]
