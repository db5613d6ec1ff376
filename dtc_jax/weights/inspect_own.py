"""Inspection of the folders that this package writes: model folders, run folders, exported folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.checkpoint_source import FLAX
from dtc_jax.weights.export_pytorch import (
    EXPERIMENT_FILE,
    POSITIONS_FILE,
    ExportedNetwork,
    exported_config,
    exported_shapes,
    needed_files,
    networks_in,
    original_positions,
)
from dtc_jax.weights.inspection import Inspection, Part, absent_part, make_part
from dtc_jax.weights.layouts import Shapes, flax_shapes
from dtc_jax.weights.mapping import differences
from dtc_jax.weights.model_folder import is_model_folder, load_config_of
from dtc_jax.weights.run_folder import stored_arrays
from dtc_jax.weights.tensors import ArraySource, SafetensorsFile, TensorSource, WeightsError, open_tensors

_STAGE_NETWORKS = {"autoencoder": ("vae",), "vgg": ("vgg", "heads")}
"""What the folders of the earlier stages hold; those of the last hold the whole model."""

_HEADS = "heads"
"""The classifier's, which are trained with the VGG stage and are no part of the model."""


def model_folder(folder: Path) -> Inspection:
    """A model folder.

    Raises:
        WeightsError: a file that is no safetensors file.
        ModelFolderError: its configuration cannot be read.
    """
    config = load_config_of(folder)
    parts = _files(folder, config)
    return Inspection(folder, "model folder", [*parts, *_missing(folder, config, parts)], {}, _experiment(config))


def run_folder(folder: Path) -> Inspection:
    """A run folder: its exported model, or else what its newest checkpoint and its frozen networks are.

    Raises:
        WeightsError, ModelFolderError: as `model_folder`.
    """
    if is_model_folder(folder / "model"):
        found = model_folder(folder / "model")
        return Inspection(folder, "run folder", found.parts, {}, f"finished; {found.details}")
    config = load_config_of(folder)
    parts = _files(folder / "frozen", config) if is_model_folder(folder / "frozen") else []
    step, arrays = stored_arrays(folder)
    if step is None:
        details = f"no checkpoint yet; {_experiment(config)}"
        return Inspection(folder, "run folder", parts, {}, details)
    where = folder / "checkpoints" / str(step)
    shapes = _shapes(config)
    for name in sorted({path.partition("/")[0] for path in arrays}):
        own = {path.partition("/")[2]: array for path, array in arrays.items() if path.startswith(f"{name}/")}
        parts.append(_own_part(where, name, ArraySource(own, where), shapes))
    weights = "moving average" if config.ema.enabled else "parameters"
    details = f"unfinished, newest checkpoint at step {step} ({weights}); {_experiment(config)}"
    return Inspection(folder, "run folder", [*parts, *_missing(where, config, parts)], {}, details)


def _experiment(config: ExperimentConfig) -> str:
    stage = "" if config.stage == "diffusion" else f", stage {config.stage}"
    return f"experiment {config.name}{stage}, {config.model.image_size} pixels"


def _shapes(config: ExperimentConfig) -> dict[str, Shapes]:
    model = DiffuseToChoose(config.model)
    shapes = model.shapes()
    if config.loss.perceptual_decoder == "taesd":
        shapes["taesd"] = model.taesd_shapes()
    return {name: flax_shapes(tree) for name, tree in shapes.items()}


def _files(folder: Path, config: ExperimentConfig) -> list[Part]:
    shapes = _shapes(config)
    return [_own_part(file, file.stem, SafetensorsFile(file), shapes) for file in sorted(folder.glob("*.safetensors"))]


def _own_part(path: Path, name: str, source: TensorSource, shapes: Mapping[str, Shapes]) -> Part:
    if name in shapes:
        problem = str(differences(FLAX, source, shapes[name]))
    else:
        problem = "" if name == _HEADS else "not a network of the configuration"
    return make_part(path, name, FLAX.name, source, source.keys(), "", problem)


def _missing(folder: Path, config: ExperimentConfig, parts: list[Part]) -> list[Part]:
    there = {part.network for part in parts}
    if config.loss.perceptual_weight == 0:
        there.add("vgg")  # is never missed
    wanted = _STAGE_NETWORKS.get(config.stage, tuple(DiffuseToChoose(config.model).shapes()))
    return [
        absent_part(folder, name, f"{name}.safetensors is missing" + (", which training alone needs" * (name == "vgg")))
        for name in wanted
        if name not in there and name != _HEADS
    ]


# -------------------------------------------------------------------------------------------------- exported folders


@dataclass(frozen=True)
class _Expected:
    """One network of an exported folder and the Flax shapes of what its tensors become."""

    network: ExportedNetwork
    shapes: Shapes


def exported_folder(folder: Path, variant: str | None = None) -> Inspection:
    """A folder that `export_pipeline` wrote.

    Args:
        folder: The folder.
        variant: Of the files in it, if somebody saved it again with one.

    Raises:
        WeightsError: its configuration is damaged.
    """
    config = exported_config(folder)
    parts = [_exported(folder, expected, variant) for expected in _expected(folder, config)]
    parts += _wrong_positions(folder, config)
    missing = [name for name in needed_files(config) if not (folder / name).is_file()]
    details = f"for DiffusionPipeline.from_pretrained(..., trust_remote_code=True); {_experiment(config)}"
    return Inspection(folder, "exported folder", parts, {}, details, missing)


def _wrong_positions(folder: Path, config: ExperimentConfig) -> list[Part]:
    """The published position table as a part of its own, if it is not what it should be."""
    try:
        original = original_positions(folder, config)
        problem = str(differences(FLAX, *original)) if original is not None else ""
    except WeightsError as error:
        problem = str(error)
    return [absent_part(folder / f"{POSITIONS_FILE}.safetensors", POSITIONS_FILE, problem)] if problem else []


def exported_part(folder: Path, variant: str | None = None) -> Part | None:
    """One network's folder of an exported folder; None if it is none of these.

    Raises:
        WeightsError: the configuration beside it is damaged.
    """
    whole = folder.resolve().parent
    for expected in _expected(whole, exported_config(whole)):
        if expected.network.folder == folder.resolve().name:
            return _exported(folder.parent, expected, variant)
    return None


def _expected(folder: Path, config: ExperimentConfig) -> list[_Expected]:
    shapes: dict[str, Any] = exported_shapes(folder, config)
    return [_Expected(network, shapes[network.network]) for network in networks_in(folder, config)]


def _exported(folder: Path, expected: _Expected, variant: str | None) -> Part:
    network = expected.network
    try:
        source = open_tensors(folder / network.folder, variant)
    except WeightsError as error:
        return absent_part(folder / network.folder, network.folder, f"missing or unreadable: {error}")
    problem = str(differences(network.layout, source, expected.shapes))
    return make_part(source.path, network.folder, network.layout.name, source, source.keys(), EXPERIMENT_FILE, problem)
