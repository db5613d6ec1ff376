"""DreamPaint: prompts encoded once, pictures of the class, what they weigh, and the way from photos to a sample."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dtc_jax import evaluate, presets
from dtc_jax.config import ConfigError, ExperimentConfig, OptimizerConfig
from dtc_jax.data.images import InputError, write_image
from dtc_jax.data.tokenizer import Tokenizer, byte_files
from dtc_jax.inference import catalogue
from dtc_jax.inference.command import main as sample
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import read_case
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training import class_images, loop
from dtc_jax.training.class_images import prepare_product
from dtc_jax.training.flops import train_flops_per_image
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import make_objective, prior_shares
from dtc_jax.training.sharding import make_mesh
from dtc_jax.training.source import evaluation_batch, make_source
from dtc_jax.weights import load_model_folder
from dtc_jax.weights.model_folder import flatten_params
from tests.dreampaint import PROMPTS, TEXT, at_test_size, write_base, write_photos
from tests.training.runs import read_metrics

KEY = jax.random.key(1)
STEPS = 20
FEW_TRAINED = "^unet/(conv_out|mid_block/attentions_0/proj_out|mid_block/attentions_0/transformer_blocks_0/attn2)(/|$)"


@pytest.fixture(scope="module")
def _compiled_in_a_hurry() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "start", at_test_size())


# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.fixture(scope="module")
def start(base: Path, photos: Path, _compiled_in_a_hurry: None) -> dict[str, Any]:
    """What a run starts from."""
    return initial_params(at_test_size(photos), jax.random.fold_in(jax.random.key(0), 0), [base])


def test_prompts_are_what_the_text_encoder_makes_of_them(start: dict[str, Any]) -> None:
    model, tokenizer = DiffuseToChoose(at_test_size().model), Tokenizer(byte_files())
    assert set(start) == {"unet", "vae", "reference_encoder", "prompts", "null_tokens"}

    def encoded(prompt: str) -> np.ndarray:
        ids = tokenizer.encode(prompt, TEXT.max_position_embeddings)
        return np.asarray(model.encode_prompts(start, ids[None]))

    np.testing.assert_allclose(start["prompts"]["product"], encoded(PROMPTS["prompt"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(start["prompts"]["class"], encoded(PROMPTS["class_prompt"]), rtol=1e-5, atol=1e-6)
    empty = encoded("")
    np.testing.assert_allclose(start["null_tokens"]["embedding"], empty, rtol=1e-5, atol=1e-6)
    assert np.abs(empty - encoded("a")).max() > 0.1


# ----------------------------------------------------------------------------------------------------------- objective


def test_shares_are_a_mean_and_a_weighted_mean() -> None:
    prior = jnp.array([0, 1, 0, 1, 1, 0, 0, 0], jnp.uint8)
    np.testing.assert_allclose(prior_shares(prior, 0.3), np.where(prior, 0.3 / 3, 1 / 5), rtol=1e-6)
    np.testing.assert_allclose(prior_shares(jnp.zeros(4), 0.3), np.full(4, 0.25), rtol=1e-6)


Loss = Callable[[dict[str, Any], dict[str, Any], int, float], dict[str, float]]


@pytest.fixture(scope="module")
def loss_of(_compiled_in_a_hurry: None) -> Loss:
    """`(params, batch, step, weight) -> metrics`, compiled once for all weights: they are in what is drawn."""
    config = at_test_size()
    compiled: Callable = jax.jit(make_objective(config).loss)

    def loss(params: dict[str, Any], batch: dict[str, Any], step: int, weight: float) -> dict[str, float]:
        weighted = dataclasses.replace(config, loss=dataclasses.replace(config.loss, prior_weight=weight))
        drawn = make_objective(weighted).draw(batch, KEY, jnp.int32(step))
        return {name: float(value) for name, value in compiled(params, drawn)[1].items()}

    return loss


def made_up(prior: list[int]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "scene": random.integers(0, 256, (4, 16, 16, 3), np.uint8),
        "mask": random.integers(0, 2, (4, 16, 16, 1), np.uint8),
        "prior": np.array(prior, np.uint8),
        "index": np.arange(4, dtype=np.uint32),
    }


def test_the_prior_weighs_as_it_should(start: dict[str, Any], loss_of: Loss) -> None:
    """Loss = the photos' + weight * the pictures', each a mean."""
    found = [loss_of(start, made_up([0, 1, 0, 1]), 0, weight) for weight in (0.0, 1.0, 3.0)]
    product, prior = found[0]["loss"], found[1]["loss"] - found[0]["loss"]
    assert prior > 0.1
    np.testing.assert_allclose(found[2]["loss"], product + 3 * prior, rtol=1e-5)
    np.testing.assert_allclose([one["product"] for one in found], [product] * 3, rtol=1e-6)
    # With the other's prompt the same pictures have another loss.
    other = loss_of(start, made_up([1, 0, 1, 0]), 0, 1.0)
    assert abs(other["product"] - prior) > 1e-4 and abs(other["loss"] - found[1]["loss"]) < 0.2 * other["loss"]


def test_every_batch_is_half_photos(photos: Path, tmp_path: Path) -> None:
    config = at_test_size(photos)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, class_images=str(write_photos(tmp_path)))
    )
    mesh = make_mesh(1, jax.devices()[:2])
    source = make_source(config, mesh)
    first, second = source(0), source(1)
    for batch in (first, second):
        assert np.asarray(batch["prior"]).tolist() == [0, 1, 0, 1]
        assert batch["scene"].shape == (4, 16, 16, 3) and len(batch["scene"].sharding.device_set) == 2
    assert np.asarray(second["index"]).tolist() == [4, 5, 6, 7]
    held_out = evaluation_batch(config, 5)
    assert set(held_out) == {"scene", "mask", "prior"} and not held_out["prior"].any()
    odd = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=3))
    with pytest.raises(ConfigError, match=r"training.batch_size = 3 must be even: half of a batch"):
        make_source(odd, make_mesh(1, jax.devices()[:1]))


# ------------------------------------------------------------------------------------------------------- the whole way


def run_config(photos: Path, **training: Any) -> ExperimentConfig:
    """A run that trains little: most of a step's program is the optimizer's, once for each array that is trained."""
    config = at_test_size(photos, steps=STEPS, checkpoint_every=10, **{"trainable": FEW_TRAINED, **training})
    return dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e-2))


@pytest.fixture(scope="module")
def run(
    photos: Path, base: Path, tmp_path_factory: pytest.TempPathFactory, _compiled_in_a_hurry: None
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    loop.train(run_config(photos), folder, [base], devices=jax.devices()[:1])
    yield folder


def test_trains_and_keeps_what_it_needs(run: Path, photos: Path, start: dict[str, Any], loss_of: Loss) -> None:
    losses = [line["loss"] for line in read_metrics(run) if "loss" in line]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    _, params = load_model_folder(run / "model")
    flat, before = flatten_params(params), flatten_params(start)
    assert flat.keys() == before.keys()
    for path, leaf in flat.items():
        assert np.array_equal(leaf, before[path]) != bool(re.search(FEW_TRAINED, path)), path
    # Of the photos, with their prompt, it knows more than before.
    batch = {**evaluation_batch(run_config(photos), 4), "index": np.arange(4, dtype=np.uint32)}
    then, now = (np.mean([loss_of(tree, batch, step, 1.0)["product"] for step in range(4)]) for tree in (start, params))
    assert now < 0.85 * then
    for folder in (run, run / "model", run / "frozen"):
        assert {path.name for path in (folder / "tokenizer").iterdir()} == {"vocab.json", "merges.txt"}
    described = json.loads((run / "model" / "data_set.json").read_text())
    assert (described["name"], described["records"]) == ("product", 3)


def test_pictures_of_the_class(run: Path, photos: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painted by the base, each a function of its number; what is missing is painted again, to the bit."""
    folder = run / "class_images"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "made_with.json"]
    before = {name: (folder / name).read_bytes() for name in names}
    assert len({before[name] for name in names}) == 4
    written: list[str] = []

    def counted(path: Path, image: Any) -> None:
        written.append(path.name)
        write_image(path, image)

    monkeypatch.setattr(class_images, "write_image", counted)
    (folder / "0001.png").unlink()
    config = run_config(photos)
    prepared = prepare_product(config, run, [base], jax.devices()[:1])
    assert prepared.data.class_images == str(folder) and written == ["0001.png"]
    assert {name: (folder / name).read_bytes() for name in names} == before
    with Image.open(folder / "0001.png") as picture:
        assert picture.size == (16, 16)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, class_prompt="a hat"))
    (run / "config.json").rename(run / "config")
    with pytest.raises(ConfigError, match="painted with another class_prompt, seed, image_size or sampling; remove"):
        prepare_product(other, run, [base], jax.devices()[:1])
    (run / "config").rename(run / "config.json")
    own = dataclasses.replace(config.data, class_images=str(photos))
    given = dataclasses.replace(config, data=own)
    assert prepare_product(given, run, [base], jax.devices()[:1]) == given


class Interrupted(Exception):
    """Stands in for whatever ends a process."""


def test_goes_on_to_the_bit(
    run: Path, photos: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run / "class_images", tmp_path / "run" / "class_images")
    took = loop.make_source

    class Ending:
        def __init__(self, *arguments: Any) -> None:
            self.source = took(*arguments)

        def __call__(self, step: int) -> Any:
            if step == 13:
                raise Interrupted
            return self.source(step)

        def close(self) -> None:
            self.source.close()

    monkeypatch.setattr(loop, "make_source", Ending)
    with pytest.raises(Interrupted):
        loop.train(run_config(photos), tmp_path / "run", [base], devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "make_source", took)
    # Neither the base nor its prompts are asked for again.
    loop.train(run_config(photos), tmp_path / "run", devices=jax.devices()[:1])
    one, other = (flatten_params(load_model_folder(folder / "model")[1]) for folder in (run, tmp_path / "run"))
    assert all(np.array_equal(one[path], other[path]) for path in one)
    fewer = dataclasses.replace(
        run_config(photos), data=dataclasses.replace(run_config(photos).data, prompt="a zwx hat")
    )
    with pytest.raises(ConfigError, match="was started with another `data`"):
        loop.train(fewer, tmp_path / "run", devices=jax.devices()[:1])
    replaced = write_photos(tmp_path / "photos", 2)
    with pytest.raises(
        ConfigError, match=r"holds product .*\(2 records .* was started with product .*give data.product"
    ):
        loop.train(run_config(replaced), tmp_path / "run", devices=jax.devices()[:1])


@pytest.mark.usefixtures("_compiled_in_a_hurry")
def test_samples_without_reference_and_text_encoder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(run / "model", tmp_path / "model")
    (model / "reference_encoder.safetensors").unlink()
    shutil.rmtree(model / "tokenizer")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    scene = tmp_path / "scene.png"
    write_image(scene, pixels)
    flags = ["--checkpoint", str(model), "--scene", str(scene), "--box", "4,4,20,20"]
    assert sample([*flags, "--output", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as image:
        painted = np.asarray(image)
    np.testing.assert_array_equal(painted[:4], pixels[:4])
    assert not np.array_equal(painted[4:20, 4:20], pixels[4:20, 4:20])
    pipeline = Pipeline.load(model)
    assert set(pipeline.params) == {"unet", "vae", "prompts", "null_tokens"}
    np.testing.assert_array_equal(pipeline(scene, None, box=(4, 4, 20, 20))[0], painted)

    capsys.readouterr()

    def refused(arguments: list[str], message: str) -> None:
        assert sample(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1, error

    refused(
        [*flags, "--reference", str(scene), "--output", str(tmp_path / "no.png")], "it takes no reference; leave it"
    )
    refused(
        [*flags, "--reference", str(tmp_path), "--output-dir", str(tmp_path)], "it takes no reference; leave it out"
    )
    case = {"id": "a", "scene": "scene.png", "box": [4, 4, 20, 20]}
    manifest, results = tmp_path / "cases.jsonl", tmp_path / "results"
    many = ["--checkpoint", str(model), "--manifest", str(manifest), "--output-dir", str(results)]
    manifest.write_text(json.dumps({**case, "reference": "scene.png"}))
    refused(many, "line 1: 'reference': this checkpoint paints the one product")
    manifest.write_text(json.dumps(case))
    assert sample(many) == 0
    with Image.open(results / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), painted)


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_in_a_hurry")
def test_the_whole_unet_is_trained_evaluated_and_drawn(run: Path, photos: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "class_images", tmp_path / "run" / "class_images")
    config = at_test_size(photos, levels=1, steps=4, evaluate_every=4, evaluate_count=4, sample_every=4)
    loop.train(config, tmp_path / "run", [base], devices=jax.devices()[:1])
    lines = read_metrics(tmp_path / "run")
    assert any(np.isfinite(value) for line in lines for key, value in line.items() if "psnr" in key)
    with Image.open(tmp_path / "run" / "samples" / "00000004.png") as grid:
        assert np.asarray(grid).std() > 10
    _, before = load_model_folder(base)
    _, after = load_model_folder(tmp_path / "run" / "model")
    moved, still = flatten_params({"unet": after["unet"]}), flatten_params({"unet": before["unet"]})
    assert not [path for path in moved if np.array_equal(moved[path], still[path])]


def test_counted_and_planned() -> None:
    """What says the cost of a step needs the shapes of its batch alone."""
    assert train_flops_per_image(at_test_size()) > 1e5


def test_commands_that_need_a_reference_say_so(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ["--checkpoint", str(run)]
    catalogue_flags = ["--references", str(photos), "--output", str(tmp_path / "tokens.safetensors")]
    for command, flags in ((catalogue, catalogue_flags), (evaluate, ["--output", str(tmp_path / "m.json")])):
        assert command.main([*checkpoint, *flags]) == 2
        error = capsys.readouterr().err
        assert "it takes no reference photo" in error and error.count("\n") == 1, error
    with pytest.raises(InputError, match="paints one product and takes no references"):
        Pipeline.load(run).with_catalogue(tmp_path / "tokens.safetensors")
    with pytest.raises(InputError, match="reference: missing; give a photo of the product"):
        read_case(np.zeros((8, 8, 3), np.uint8), None, None, presets.test(), box=(1, 1, 5, 5))


# ------------------------------------------------------------------------------------------------------- errors of use


def test_what_a_base_must_have(base: Path, photos: Path, tmp_path: Path) -> None:
    config = at_test_size(photos)
    with pytest.raises(
        ConfigError, match="dreampaint tunes a model that can paint already: name its folder with --init"
    ):
        loop.train(config, tmp_path / "run", devices=jax.devices()[:1])
    vocabulary = dataclasses.replace(TEXT, vocab_size=600)
    larger = dataclasses.replace(config, model=dataclasses.replace(config.model, reference_encoder=vocabulary))
    with pytest.raises(ConfigError, match=r"start: .*text encoder.*convert_weights.py import --text-encoder"):
        loop.train(larger, tmp_path / "run", [base], devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"^data\.product .*absent: no such folder"):
        loop.train(at_test_size(tmp_path / "absent"), tmp_path / "run", [base], devices=jax.devices()[:1])
    # Before anything is painted.
    odd = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=3))
    with pytest.raises(ConfigError, match=r"training.batch_size = 3 must be even"):
        loop.train(odd, tmp_path / "odd", [base], devices=jax.devices()[:1])
    assert not (tmp_path / "odd").exists()
    wordy = dataclasses.replace(
        config, data=dataclasses.replace(config.data, prompt="a photo of a very long sks shirt")
    )
    with pytest.raises(ConfigError, match=r"^prompt 'a photo of a very long sks shirt': has 25 tokens"):
        loop.train(wordy, tmp_path / "run", [base], devices=jax.devices()[:1])
