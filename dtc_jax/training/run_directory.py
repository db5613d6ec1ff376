"""The run folder's identity: it belongs to one experiment, which its config.json describes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dtc_jax.config import ConfigError, ExperimentConfig, config_to_json, load_config
from dtc_jax.data.product import fingerprint_of, image_files
from dtc_jax.data.records import find_data_set, fingerprint
from dtc_jax.data.tokenizer import read_files
from dtc_jax.locks import take_lock
from dtc_jax.training.files import write_text
from dtc_jax.weights.model_folder import is_model_folder
from dtc_jax.weights.prompts import TOKENIZER
from dtc_jax.weights.training_data import DATA_FILE, TrainingData

_Kind = TypeVar("_Kind", list[Any], dict[str, Any])

START_FILE = "init_from.json"
"""The folders that the run started from: until its first checkpoint, a start that names none takes them again."""


@contextmanager
def only_run(run_dir: Path) -> Iterator[None]:
    """Create the run folder, and keep other runs out of it; the lock goes with the process.

    Raises:
        ConfigError: another run is at work in it, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise _cannot_be_written(run_dir, error) from None
    with file:
        if not take_lock(file):
            raise ConfigError(f"{run_dir}: another run is at work in it; wait for its end, or use another --run-dir")
        try:
            yield
        finally:
            # What came to nothing leaves nothing.
            if [path.name for path in run_dir.iterdir()] == [".lock"]:
                shutil.rmtree(run_dir, ignore_errors=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run can go on from a checkpoint of its own."""
    return newest_step(run_dir) >= 0


def newest_step(run_dir: Path) -> int:
    """The step of a run's newest checkpoint; -1 without one."""
    return max((int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit()), default=-1)


def starting_folders(run_dir: Path) -> list[Path]:
    """What a run that has no checkpoint yet was started from; nothing where it has one, or began with nothing."""
    path = run_dir / START_FILE
    if has_checkpoint(run_dir) or not path.is_file():
        return []
    return [Path(folder) for folder in _read_json(path, list)]


def networks_held(run_dir: Path) -> frozenset[str]:
    """Names of the networks in the run's `frozen/`."""
    return frozenset(path.stem for path in (run_dir / "frozen").glob("*.safetensors"))


def prepare_run_dir(
    config: ExperimentConfig, run_dir: Path, write: bool, resumed: bool, init_from: Sequence[Path] = ()
) -> None:
    """Write the run folder's description.

    Args:
        config: The experiment.
        run_dir: The run folder.
        write: One process writes.
        resumed: The folder holds checkpoints: its description must be of the same networks and data. Without, nothing
            has been trained that a new description could contradict.
        init_from: The folders that a run without checkpoints starts from.

    Raises:
        ConfigError: the folder belongs to another experiment, or holds a model that no checkpoint goes on from.
    """
    described = describe_data_set(config)
    if resumed:
        check_same_run(config, run_dir, described)
        if (run_dir / "model").exists() and not is_model_folder(run_dir / "model"):
            raise ConfigError(
                f"{run_dir / 'model'}: is no model folder, and the run writes its model there; rename or remove it"
            )
    elif (run_dir / "model").exists():
        raise ConfigError(
            f"{run_dir / 'model'}: is there, without checkpoints to go on from, and a run writes its model there; use "
            "another --run-dir"
        )
    if write:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(run_dir / "config.json", config_to_json(config))
            if described:
                write_text(run_dir / DATA_FILE, json.dumps(described, indent=2) + "\n")
            if not resumed:
                folders = [str(folder.absolute()) for folder in init_from]
                write_text(run_dir / START_FILE, json.dumps(folders, indent=2) + "\n")
        except OSError as error:
            raise _cannot_be_written(run_dir, error) from None


def _cannot_be_written(run_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{run_dir}: cannot be written ({error.strerror}); use another --run-dir")


def check_same_run(config: ExperimentConfig, run_dir: Path, described: dict[str, Any]) -> None:
    """Refuse to go on with a run of other networks or data.

    Args:
        config: The experiment.
        run_dir: The run folder, with checkpoints.
        described: `describe_data_set` of the experiment.

    Raises:
        ConfigError: the folder belongs to another experiment.
    """
    path = run_dir / "config.json"
    if not path.exists():
        return
    try:
        earlier = load_config(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: damaged ({error}); put it right, or use another --run-dir") from None
    if not earlier.data.draws_same_as(config.data):
        raise ConfigError(f"{run_dir}: was started with another `data`; use another --run-dir, or --init-from it")
    for part in ("stage", "model", "diffusion"):
        if getattr(earlier, part) != getattr(config, part):
            raise ConfigError(f"{run_dir}: was started with another `{part}`; use another --run-dir, or --init-from it")
    # These decide which numbers each step draws, or what the checkpoint holds.
    for name in ("seed", "batch_size", "trainable"):
        before, now = getattr(earlier.training, name), getattr(config.training, name)
        if before != now:
            raise ConfigError(
                f"{run_dir}: was started with training.{name} = {before}, not {now}; use another --run-dir"
            )
    if (reached := newest_step(run_dir)) > config.training.steps:
        raise ConfigError(
            f"{run_dir}: has a checkpoint of step {reached}, and training.steps is {config.training.steps}; raise it, "
            "or use another --run-dir"
        )
    if earlier.ema.enabled != config.ema.enabled:
        raise ConfigError(
            f"{run_dir}: was started with ema.enabled = {earlier.ema.enabled}, not {config.ema.enabled}; "
            "use another --run-dir"
        )
    data_path = run_dir / DATA_FILE
    if not described or not data_path.exists():
        return
    stored = _read_json(data_path, dict)
    # Runs of earlier versions kept no fingerprint.
    before, now = _in_words(stored), _in_words({name: described[name] for name in described if name in stored})
    if before != now:
        field = "product" if config.data.kind == "product" else "path"
        raise ConfigError(
            f"{getattr(config.data, field)}: holds {now}, {run_dir} was started with {before}; give data.{field} that "
            "one, or use another --run-dir"
        )


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
    which = {"name": found.name, "version": found.version, "size": found.size, "records": count}
    return {**which, "fingerprint": fingerprint(found, config.data.split), **said}


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
    marked = f", fingerprint {described['fingerprint']}" if "fingerprint" in described else ""
    return "{name} {version} ({records} records of {size} pixels{marked})".format(marked=marked, **described)


def _read_json(path: Path, kind: type[_Kind]) -> _Kind:
    """What a small file of the run holds.

    Raises:
        ConfigError: not that; a power failure can leave it so.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise ConfigError(f"{path}: damaged; remove it, and say again what the run started from")
    return value
