"""A model or run folder as named tensors per network, complete and of the configuration's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.layouts import Entry, Layout, Shapes, flax_shapes
from dtc_jax.weights.mapping import differences
from dtc_jax.weights.model_folder import (
    ModelFolderError,
    flatten_params,
    is_model_folder,
    load_config_of,
    resolve_checkpoint,
)
from dtc_jax.weights.run_folder import is_unfinished_run, load_run_folder, split_step
from dtc_jax.weights.sources import SOURCES_FILE, Source, read_sources
from dtc_jax.weights.tensors import ArraySource, SafetensorsFile, TensorSource, WeightsError
from dtc_jax.weights.training_data import TrainingData, read_training_data

Weights = Literal["ema", "params"]

OPTIONAL = ("vgg",)
"""Networks that only training needs."""


def _flax_entries(shapes: Shapes) -> list[Entry]:
    return [Entry((path,), (path,)) for path in shapes]


FLAX = Layout("dtc-jax", _flax_entries)
"""Our own files: Flax paths as names."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, to be read one tensor at a time.

    Attributes:
        path: What the user named.
        config: Its configuration.
        networks: Tensors of each network, named by Flax paths.
        sources: Where the networks came from before training, as far as is known.
        data: What it was trained on; None if it was imported and never trained.
    """

    path: Path
    config: ExperimentConfig
    networks: dict[str, TensorSource]
    sources: list[Source]
    data: TrainingData | None


def open_checkpoint(path: Path | None, weights: Weights | None = None) -> Checkpoint:
    """Open a model folder, a run folder, or (None) the shipped model.

    Args:
        path: See `load_checkpoint`.
        weights: Of a run: the moving average (the default) or the parameters that are trained.

    Raises:
        ModelFolderError: nothing of the kind.
        WeightsError: a tensor is missing, unexpected or misshapen; or `params` are wanted of a model folder.
    """
    is_run = path is not None and (path / "checkpoints").is_dir()
    if path is not None and (is_unfinished_run(path) or (is_run and weights == "params")):
        config, params = load_run_folder(path, weights or "ema")
        networks: dict[str, TensorSource] = {
            name: ArraySource(flatten_params(network), path) for name, network in params.items()
        }
        run, _ = split_step(path)
        folders = [run, run / "frozen"]
    else:
        folder = resolve_checkpoint(path)
        if weights == "params":
            raise WeightsError(
                f"{folder}: a model folder holds one set of weights; --weights params needs a run folder"
            )
        config = load_config_of(folder)
        networks = {file.stem: SafetensorsFile(file) for file in sorted(folder.glob("*.safetensors"))}
        folders = [folder, folder.parent / "frozen"]
    check_networks(config, networks, path or Path("the shipped model"))
    sources = next((found for found in map(read_sources, folders) if found), [])
    return Checkpoint(path or folders[0], config, networks, sources, _training_data(folders[0], config))


def _training_data(folder: Path, config: ExperimentConfig) -> TrainingData | None:
    """What lies beside the weights, or in their run; importing leaves a sources.json there, training does not."""
    found = read_training_data(folder)
    if found is None and (folder.parent / "checkpoints").is_dir():
        found = read_training_data(folder.parent)
    if found is None and not (folder / SOURCES_FILE).is_file():
        return TrainingData(config.data.kind)
    return found


def check_networks(config: ExperimentConfig, networks: dict[str, TensorSource], where: Path) -> None:
    """Account for every network and every tensor of a model.

    Raises:
        ModelFolderError: a network is missing or unknown.
        WeightsError: a tensor is missing, unexpected or misshapen.
    """
    expected = DiffuseToChoose(config.model).shapes()
    missing = [name for name in expected if name not in networks and name not in OPTIONAL]
    unknown = [name for name in networks if name not in expected]
    if missing or unknown:
        parts = [f"no {', '.join(missing)}" if missing else "", f"unknown {', '.join(unknown)}" if unknown else ""]
        raise ModelFolderError(f"{where}: not a complete model: {'; '.join(part for part in parts if part)}")
    for name, source in networks.items():
        found = differences(FLAX, source, flax_shapes(expected[name]))
        if str(found):
            raise WeightsError(f"{found.origin}: {name} does not fit the configuration: {found}")


__all__ = ["FLAX", "Checkpoint", "Weights", "check_networks", "is_model_folder", "open_checkpoint"]
