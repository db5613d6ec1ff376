"""The run folder's identity: it belongs to one experiment, which its config.json describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dtc_jax.config import ConfigError, ExperimentConfig, config_to_json, load_config
from dtc_jax.data.product import fingerprint_of, image_files
from dtc_jax.data.records import find_data_set
from dtc_jax.data.tokenizer import read_files
from dtc_jax.training.files import write_text
from dtc_jax.weights.prompts import TOKENIZER
from dtc_jax.weights.training_data import DATA_FILE, TrainingData


def prepare_run_dir(config: ExperimentConfig, run_dir: Path, write: bool) -> None:
    """Create the run folder with its config.json, or check that the one there describes the same networks and data.

    Raises:
        ConfigError: the folder belongs to another experiment.
    """
    path = run_dir / "config.json"
    if path.exists():
        earlier = load_config(path)
        if not earlier.data.draws_same_as(config.data):
            raise ConfigError(f"{run_dir}: was started with another `data`; use another --run-dir, or --init-from it")
        for part in ("stage", "model", "diffusion"):
            if getattr(earlier, part) != getattr(config, part):
                raise ConfigError(
                    f"{run_dir}: was started with another `{part}`; use another --run-dir, or --init-from it"
                )
        # These decide which numbers each step draws, or what the checkpoint holds.
        for name in ("seed", "batch_size", "trainable"):
            before, now = getattr(earlier.training, name), getattr(config.training, name)
            if before != now:
                raise ConfigError(
                    f"{run_dir}: was started with training.{name} = {before}, not {now}; use another --run-dir"
                )
        if earlier.ema.enabled != config.ema.enabled:
            raise ConfigError(
                f"{run_dir}: was started with ema.enabled = {earlier.ema.enabled}, not {config.ema.enabled}; "
                "use another --run-dir"
            )
    described = describe_data_set(config)
    data_path = run_dir / DATA_FILE
    if (
        path.exists()
        and described
        and data_path.exists()
        and _in_words(before := json.loads(data_path.read_text())) != _in_words(described)
    ):
        field = "product" if config.data.kind == "product" else "path"
        raise ConfigError(
            f"{getattr(config.data, field)}: holds {_in_words(described)}, {run_dir} was started with "
            f"{_in_words(before)}; give data.{field} that one, or use another --run-dir"
        )
    if write:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(path, config_to_json(config))
            if described:
                write_text(data_path, json.dumps(described, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"{run_dir}: cannot be written ({error.strerror}); use another --run-dir") from None


def describe_data_set(config: ExperimentConfig) -> dict[str, Any]:
    """What a prepared data set is, wherever it lies: a run may go on where it has been copied to. Empty without one.

    Of a product's photos, and of the pictures of its class, the version tells which files they are.

    Raises:
        ConfigError: there is none at `data.path`, or no photos in `data.product`.
    """
    if config.data.kind == "product":
        folders = {"data.product": config.data.product}
        if config.loss.prior_weight > 0:
            folders["data.class_images"] = config.data.class_images
        files = {name: image_files(folder, name, "name the folder of them") for name, folder in folders.items()}
        version = "-".join(fingerprint_of(paths) for paths in files.values())
        count = len(files["data.product"])
        return {"name": "product", "version": version, "size": config.model.image_size, "records": count}
    if config.data.kind != "records" or config.data.path is None:
        return {}
    found = find_data_set(config.data.path)
    count = found.splits.get(config.data.split, 0)
    # The licence is for those who get the model; the others say which data they are.
    licence = found.metadata.get("licence")
    said = {} if licence is None else {"licence": licence}
    return {"name": found.name, "version": found.version, "size": found.size, "records": count, **said}


def data_notes(config: ExperimentConfig, run_dir: Path) -> dict[str, str]:
    """What goes into a model folder about the data that it was trained on: {file name: text}.

    With a prompt that is also the tokenizer that it was read with.
    """
    path, tokenizer = run_dir / DATA_FILE, run_dir / TOKENIZER
    texts = (
        {f"{TOKENIZER}/{name}": text for name, text in read_files(tokenizer).items()} if config.model.prompted else {}
    )
    if config.data.kind != "procedural" and path.is_file():
        return {DATA_FILE: path.read_text(), **texts}
    return {DATA_FILE: TrainingData(config.data.kind).to_json(), **texts}


def _in_words(described: dict[str, Any]) -> str:
    return "{name} {version} ({records} records of {size} pixels)".format(**described)
