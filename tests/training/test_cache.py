"""Caches: training on one is training on what it was made from, without the frozen networks."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ConfigError, DiffusionConfig, ExperimentConfig, LossConfig, TrainingConfig
from dtc_jax.data.cached import CACHED, cache_of
from dtc_jax.data.pipeline import RecordReader, evaluation_records, stack
from dtc_jax.data.records import find_data_set, open_split
from dtc_jax.training.cache import check_output, main, size_of
from dtc_jax.training.cached_networks import check_cached_networks, load_networks
from dtc_jax.training.caching import make_cache, plan_cache
from dtc_jax.training.initial import initial_params, needed_networks
from dtc_jax.training.objective import make_objective
from dtc_jax.training.sharding import make_mesh
from dtc_jax.weights.fingerprint import fingerprint
from dtc_jax.weights.model_folder import save_model_folder
from tests.data import prepared
from tests.training.runs import FAST_COMPILE, ROOT, finish, read_metrics, start

RECORDS, VARIANTS, BROKEN = 5, 2, 3
KEY = jax.random.key(3)
BOTH = ("tokens", "latents")


def experiment(folder: Path, cached: tuple[str, ...] = (), **data: Any) -> ExperimentConfig:
    return ExperimentConfig(
        model=presets.test(),
        diffusion=DiffusionConfig(prediction_type="v_prediction"),
        data=prepared.config(folder, cached=cached, max_broken=0.5, **data),
        loss=LossConfig(drop_tokens=0.1, drop_hint=0.1, drop_both=0.1),
        training=TrainingConfig(batch_size=4, compute_dtype="float32", steps=6, sample_every=0),
    )


@functools.cache
def parameters() -> dict[str, Any]:
    """All networks."""
    return initial_params(ExperimentConfig(model=presets.test()), KEY)


def write(folder: Path, output: Path, dtype: str = "float32", **options: Any) -> Path | None:
    """A cache whose every file has two entries."""
    config = experiment(folder, BOTH)
    plan = plan_cache(config, VARIANTS, dtype)
    mesh = make_mesh(1, jax.devices()[:2])
    params = {name: parameters()[name] for name in ("vae", "reference_encoder")}
    options = {"shard_bytes": 2 * (plan.array_bytes + plan.image_bytes), **options}
    return make_cache(plan, params, output, mesh, **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), train=RECORDS, test=3, broken=(BROKEN,))


@pytest.fixture(scope="module")
def cache(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cache")
    told = []
    folder = write(original, output, on_broken=told.append)
    assert folder is not None and [record.number for record in told] == [BROKEN]
    return output


def reader(config: ExperimentConfig) -> RecordReader:
    return RecordReader(config.data, config.model)


def test_samples_are_those_of_the_first_epochs(original: Path, cache: Path) -> None:
    plain, cached = reader(experiment(original)), reader(experiment(cache, BOTH))
    assert cached.count == RECORDS and cached.variants == VARIANTS
    assert cached.data_set.splits == {"train": RECORDS * VARIANTS, "test": 3}
    for place in range(RECORDS * VARIANTS):
        expected, found = plain.training_sample(place).arrays, cached.training_sample(place).arrays
        assert found.keys() - expected.keys() == set(CACHED["tokens"] + CACHED["latents"])
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{name} at {place}")
    # Without their names in data.cached the arrays stay out of the batch.
    assert reader(experiment(cache)).training_sample(0).arrays.keys() == plain.training_sample(0).arrays.keys()
    assert "latent_mean" not in reader(experiment(cache, ("tokens",))).training_sample(0).arrays


def test_later_epochs_go_through_the_variants_again(cache: Path) -> None:
    cached = reader(experiment(cache, BOTH))
    for place in range(RECORDS * VARIANTS, RECORDS * (VARIANTS + 2)):
        record, variant = cached.order.record(place), place // RECORDS % VARIANTS
        same = range(variant * RECORDS, (variant + 1) * RECORDS)
        (earlier,) = [other for other in same if cached.order.record(other) == record]
        expected, found = cached.training_sample(earlier).arrays, cached.training_sample(place).arrays
        assert int(found["index"]) == place
        for name in expected.keys() - {"index"}:
            np.testing.assert_array_equal(found[name], expected[name])


def test_losses_are_those_of_training_without(original: Path, cache: Path) -> None:
    losses = {}
    for name, config in (("plain", experiment(original)), ("cached", experiment(cache, BOTH))):
        objective = make_objective(config)
        step_loss = jax.jit(lambda params, batch, step, objective=objective: objective(params, batch, KEY, step)[1])
        source = reader(config)
        # What the run would load: the reference encoder is not there any more.
        params = {network: parameters()[network] for network in needed_networks(config)}
        losses[name] = []
        for step in range(2):
            batch = stack([source.training_sample(place) for place in range(4 * step, 4 * step + 4)])
            metrics = step_loss(params, batch, jnp.int32(step))
            losses[name].append([float(metrics[part]) for part in ("diffusion", "perceptual", "loss")])
    assert "reference_encoder" not in needed_networks(experiment(cache, BOTH))
    drawn = dataclasses.replace(experiment(cache, BOTH), training=TrainingConfig(sample_every=1))
    assert {"reference_encoder", "vae"} <= set(needed_networks(drawn))
    np.testing.assert_allclose(losses["cached"], losses["plain"], rtol=2e-6)
    assert abs(losses["plain"][0][0] - losses["plain"][1][0]) > 1e-3


def test_evaluation_is_that_of_the_original(original: Path, cache: Path) -> None:
    expected, _ = evaluation_records(experiment(original).data, presets.test(), 3)
    found, _ = evaluation_records(experiment(cache, ("tokens",)).data, presets.test(), 3)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert found["tokens"].shape[0] == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_types(dtype: str, original: Path, cache: Path, tmp_path: Path) -> None:
    write(original, tmp_path, dtype)
    exact, rounded = (reader(experiment(folder, BOTH)).training_sample(1).arrays for folder in (cache, tmp_path))
    for name in CACHED["tokens"] + CACHED["latents"]:
        assert exact[name].dtype == np.float32 and rounded[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(exact[name].astype(jnp.dtype(dtype)), rounded[name])


def entries(folder: Path) -> list[dict[str, Any]]:
    data_set = find_data_set(folder)
    return [record for split in ("train", "test") for record in open_split(data_set, split)]


def assert_same_entries(one: Path, other: Path) -> None:
    for expected, found in zip(entries(one), entries(other), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_was_cut_off_goes_on(original: Path, cache: Path, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        write(original, tmp_path, progress=interrupt)
    with pytest.raises(ConfigError, match="did not finish"):
        find_data_set(tmp_path)
    (begun,) = tmp_path.glob("incomplete.*")
    before = {path: path.stat().st_mtime_ns for path in begun.glob("*array_record*")}
    assert len(before) == 2
    with pytest.raises(ConfigError, match="other settings"):
        write(original, tmp_path, "bfloat16")
    told: list[int] = []
    folder = write(original, tmp_path, progress=lambda done, total: told.append(done))
    assert folder is not None and told[0] == 4 and told[-1] == RECORDS * VARIANTS + 3
    assert all((folder / path.name).stat().st_mtime_ns == time for path, time in before.items())
    assert_same_entries(cache, tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        write(original, tmp_path)


def test_parts_of_several_machines_make_one_cache(original: Path, cache: Path, tmp_path: Path) -> None:
    assert write(original, tmp_path, part=(1, 2)) is None
    assert write(original, tmp_path, part=(0, 2)) is not None
    assert_same_entries(cache, tmp_path)


def test_parts_of_two_data_sets_are_kept_apart(original: Path, cache: Path, tmp_path: Path) -> None:
    """The same name, version and numbers, but other pictures."""
    other = prepared.write(tmp_path / "other", train=RECORDS, test=3, seed=9)
    assert write(original, tmp_path / "cache", part=(1, 2)) is None
    with pytest.raises(ConfigError, match="other settings"):
        write(other, tmp_path / "cache", part=(0, 2))
    write(other, tmp_path / "second")
    assert find_data_set(tmp_path / "second").name != find_data_set(cache).name


def test_outputs_are_checked_before_networks_are_loaded(original: Path, cache: Path) -> None:
    check_output(cache.parent / "new")
    with pytest.raises(ConfigError, match="is a data set; name a folder beside it"):
        check_output(find_data_set(original).folder)
    with pytest.raises(ConfigError, match="exists already"):
        check_output(cache)


def test_a_cache_that_does_not_fit_is_refused(original: Path, cache: Path) -> None:
    data, model = experiment(cache, BOTH).data, presets.test()
    hint = dataclasses.replace(model.hint, trim=False)
    encoder = dataclasses.replace(model.reference_encoder, layer_norm_eps=1e-5)
    cases = {
        "data.flip_probability = 0.5, not 0.25": (dataclasses.replace(data, flip_probability=0.25), model),
        "data.seed = 0, not 1": (dataclasses.replace(data, seed=1), model),
        "data.split = train, not test": (dataclasses.replace(data, split="test"), model),
        "model.hint.trim = True, not False": (data, dataclasses.replace(model, hint=hint)),
        "layer_norm_eps = 1e-06, not 1e-05": (data, dataclasses.replace(model, reference_encoder=encoder)),
        "holds no cached tokens": (dataclasses.replace(data, path=str(original)), model),
    }
    for message, (changed_data, changed_model) in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            RecordReader(changed_data, changed_model)
        assert "\n" not in str(caught.value)
    # The hint is stitched when the entry is read, and the reference encoder is none of the latents' business.
    RecordReader(data, dataclasses.replace(model, hint=dataclasses.replace(model.hint, fit="stretch")))
    RecordReader(dataclasses.replace(data, cached=("latents",)), dataclasses.replace(model, reference_encoder=encoder))


def test_networks_must_be_those_that_were_cached(cache: Path, tmp_path: Path) -> None:
    config = experiment(cache, BOTH)
    folder = save(tmp_path / "same", config, parameters())
    kept = initial_params(config, KEY, [folder])
    assert "reference_encoder" not in kept and "vae" in kept
    for name in ("vae", "reference_encoder"):
        changed = {**parameters(), name: jax.tree.map(lambda leaf: leaf * 1.01, parameters()[name])}
        with pytest.raises(ConfigError, match=f"{name} is not the one whose outputs"):
            initial_params(config, KEY, [save(tmp_path / name, config, changed)])
    with pytest.raises(ConfigError, match="random weights: vae is not the one"):
        initial_params(config, jax.random.key(99))
    trained = dataclasses.replace(config.training, trainable="^(unet|vae)(/|$)")
    with pytest.raises(ConfigError, match="trains its network, vae"):
        check_cached_networks(dataclasses.replace(config, training=trained), {}, "x")


def save(folder: Path, config: ExperimentConfig, params: Any) -> Path:
    save_model_folder(folder, config, params)
    return folder


def test_networks_are_those_that_training_starts_with(cache: Path, tmp_path: Path) -> None:
    config = experiment(cache, BOTH)
    fresh = load_networks(config, KEY)
    stored = cache_of(find_data_set(cache))
    assert stored is not None and {name: fingerprint(tree) for name, tree in fresh.items()} == dict(stored.networks)
    only = save(tmp_path / "vae", config, {"vae": jax.tree.map(lambda leaf: leaf + 1, parameters()["vae"])})
    with pytest.raises(ConfigError, match="holds reference_encoder"):
        load_networks(config, KEY, [only])
    whole = save(tmp_path / "all", config, parameters())
    found = load_networks(config, KEY, [whole, only])
    assert fingerprint(found["vae"]) != stored.networks["vae"]
    assert fingerprint(found["reference_encoder"]) == stored.networks["reference_encoder"]


def test_fingerprints_tell_weights_apart_but_not_types() -> None:
    tree = {"a": {"kernel": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(3, np.float32)}
    same = fingerprint(tree)
    assert fingerprint(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)) == same
    assert fingerprint({**tree, "b": np.array([1, 1, 1.01], np.float32)}) != same
    assert fingerprint({"a": {"kernel": tree["a"]["kernel"].reshape(3, 2)}, "b": tree["b"]}) != same
    assert fingerprint({"a": tree["a"], "c": tree["b"]}) != same


def test_outputs_beyond_the_type_are_refused(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = parameters()["reference_encoder"]["layernorm"]["bias"]
    monkeypatch.setitem(parameters()["reference_encoder"]["layernorm"], "bias", bias + 1e6)
    with pytest.raises(ConfigError, match="tokens: not finite as float16; take --dtype bfloat16"):
        write(original, tmp_path, "float16")


def test_size_is_told_before(original: Path, cache: Path) -> None:
    plan = plan_cache(experiment(original, BOTH), VARIANTS, "float16")
    assert size_of(plan).startswith("5 train records x 2 variants + 3 test records: 13 samples of ")
    tokens, latents = 5 * 16, 3 * 8 * 8 * 4
    assert plan.array_bytes == 2 * (tokens + latents)
    exact = plan_cache(experiment(original, BOTH), VARIANTS, "float32")
    stored = [sum(entry[name].nbytes for name in exact.shapes) for entry in entries(cache)]
    assert stored == [exact.array_bytes] * 13
    assert exact.total_bytes == 13 * (exact.array_bytes + exact.image_bytes)


def test_errors_of_use_are_one_line(
    original: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, path = ("--output", str(tmp_path / "out")), ("--data.path", str(original))
    cases = {
        "no experiment 'absent'": ("absent", *output),
        "--data.path: not given": ("test", *output),
        "stage autoencoder reads no outputs": ("tiny_autoencoder", *output, *path),
        "trains its network, reference_encoder": ("tiny", *output, *path),
        "--variants = 0": ("test", *output, *path, "--variants", "0"),
        "must be I N": ("test", *output, *path, "--part", "2", "2"),
        "is a cache itself": ("test", *output, "--data.path", str(cache)),
        "the cache needs": ("test", *output, *path),
    }
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    for message, words in cases.items():
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
    assert main(("test", *output, *path, "--estimate")) == 0
    assert "8 samples of" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_two_commands(original: Path, tmp_path: Path) -> None:
    folder, flags = tmp_path / "cache", ("--data.max-broken", "0.5", "--training.steps", "2", "--cpu-devices", "2")
    flags += ("--optimizer.warmup-steps", "1")
    command = [sys.executable, "-m", "dtc_jax.training.cache", "test", "--output", str(folder)]
    options = ["--data.path", str(original), "--variants", "4", "--dtype", "float32", "--data.workers", "1", *flags]
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and ": complete; train with --data.kind records" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    # Eight places of an epoch of five: two epochs and more, and grids at the end.
    runs = {}
    for name, path, cached in (("plain", original, ()), ("cached", folder, ("--data.cached", *BOTH))):
        records = ("--data.kind", "records", "--data.path", str(path), "--data.workers", "1")
        finish(start(tmp_path / name, *flags, *records, *cached, "--training.sample-every", "2"))
        runs[name] = [line["loss"] for line in read_metrics(tmp_path / name)]
    np.testing.assert_allclose(runs["cached"], runs["plain"], rtol=1e-5)
    assert (tmp_path / "cached" / "model" / "reference_encoder.safetensors").is_file()
