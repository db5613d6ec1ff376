"""Writing an exported folder, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dtc_jax.config import ConfigError, DINOv2Config, ExperimentConfig, config_from_json, config_to_json
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.dinov2 import interpolate_positions
from dtc_jax.weights.checkpoint_source import FLAX, Checkpoint
from dtc_jax.weights.dinov2 import POSITIONS
from dtc_jax.weights.export_pytorch.card import model_card
from dtc_jax.weights.export_pytorch.code_files import PIPELINE_FILES, copy_code
from dtc_jax.weights.export_pytorch.networks import (
    ExportedNetwork,
    exported_encoder,
    exported_networks,
    model_index,
    perceptual_network,
    scheduler_config,
)
from dtc_jax.weights.layouts import flax_shapes
from dtc_jax.weights.mapping import export_tensors, import_tensors
from dtc_jax.weights.new_folder import new_folder
from dtc_jax.weights.sources import Source, read_sources, write_sources
from dtc_jax.weights.tensors import LazyTensor, Shape, TensorSource, WeightsError, cast, open_tensors, write_tensors
from dtc_jax.weights.training_data import DATA_FILE, TrainingData, read_training_data

EXPERIMENT_FILE = "dtc_jax.json"
"""The whole configuration, for the way back."""

POSITIONS_FILE = "reference_positions"
"""The reference encoder's position table as it was imported, where the encoder itself has it at another size."""

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class ReplacedSource:
    """A source of which one tensor has other values.

    Attributes:
        source: The others.
        name: Of the tensor.
        array: Its values; may have another shape.
    """

    source: TensorSource
    name: str
    array: np.ndarray

    @property
    def path(self) -> Path:
        return self.source.path

    def keys(self) -> Sequence[str]:
        return self.source.keys()

    def shape(self, name: str) -> Shape:
        return self.array.shape if name == self.name else self.source.shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self.array.dtype if name == self.name else self.source.dtype(name)

    def read(self, name: str) -> np.ndarray:
        return self.array if name == self.name else self.source.read(name)

    def origin(self, name: str) -> Path:
        return self.source.origin(name)

    def full_name(self, name: str) -> str:
        return self.source.full_name(name)


# ---------------------------------------------------------------------------------------------------------- writing


def export_pipeline(
    checkpoint: Checkpoint,
    target: Path,
    *,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    with_vgg: bool = False,
    sources: Sequence[Source] = (),
) -> Path:
    """Write a folder that diffusers loads.

    Args:
        checkpoint: What to export.
        target: The new folder.
        dtype: Of the weights; None keeps theirs.
        max_shard_bytes: Files larger than this are split into shards with an index.
        with_vgg: Also write the perceptual loss's network, which only training on needs.
        sources: Where the networks came from, if the checkpoint itself does not say.

    Returns:
        The folder.

    Raises:
        WeightsError: the folder exists or cannot be written, or a value does not fit the type or is not finite.
    """
    config = checkpoint.config
    known = list(checkpoint.sources or sources)
    networks = exported_networks(config.model)
    with new_folder(target) as folder:
        for network in networks:
            _, tensors = exported_tensors(checkpoint, network, dtype)
            write_network(folder / network.folder, network, tensors, dtype, max_shard_bytes)
        if with_vgg and "vgg" in checkpoint.networks:
            network = perceptual_network(config.model)
            tensors = export_tensors(network.layout, checkpoint.networks["vgg"], dtype)
            write_network(folder / network.folder, network, tensors, dtype, max_shard_bytes)
        reference = exported_encoder(config.model)
        if _has_original_positions(reference):
            table = cast_or_keep(checkpoint.networks["reference_encoder"].read(POSITIONS), dtype)
            write_tensors(folder, POSITIONS_FILE, [LazyTensor(POSITIONS, table.shape, table.dtype, lambda: table)])
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(config.diffusion, config.sampling))
        write_json(folder / "model_index.json", model_index(config, networks))
        for name in PIPELINE_FILES:
            copy_code(name, folder)
        (folder / EXPERIMENT_FILE).write_text(config_to_json(config))
        if known:
            write_sources(folder, known)
        if checkpoint.data is not None:
            (folder / DATA_FILE).write_text(checkpoint.data.to_json())
        exported = [network.network for network in networks] + ["vgg"] * (folder / "vgg").is_dir()
        (folder / "README.md").write_text(model_card(checkpoint, exported, known, dtype))
    return target


def exported_tensors(
    checkpoint: Checkpoint, network: ExportedNetwork, dtype: DTypeLike | None = None
) -> tuple[TensorSource, list[LazyTensor]]:
    """What a network becomes: in our layout (with the position table of the size that is used), and in PyTorch's."""
    source = checkpoint.networks[network.network]
    if network.network == "reference_encoder":
        reference = exported_encoder(checkpoint.config.model)
        stored = source.read(POSITIONS)
        table = np.asarray(interpolate_positions(jnp.asarray(stored, jnp.float32), reference))
        source = ReplacedSource(source, POSITIONS, table.astype(stored.dtype))
    return source, export_tensors(network.layout, source, dtype)


def cast_or_keep(array: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """The array in a type, or as it is where that is None."""
    return array if dtype is None else cast(array, dtype, POSITIONS)


def write_network(
    folder: Path, network: ExportedNetwork, tensors: list[LazyTensor], dtype: DTypeLike | None, max_shard_bytes: int
) -> None:
    """One network's folder: weights, config.json, and the code that it brings."""
    folder.mkdir()
    write_tensors(folder, network.weights_name, tensors, dtype, max_shard_bytes)
    if network.library:
        config = network.config_json()
        if network.library == "transformers":
            config["dtype"] = np.dtype(dtype or tensors[0].dtype).name
        write_json(folder / "config.json", config)
    if network.code is not None:
        copy_code(network.code, folder)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A configuration, as diffusers and transformers write theirs."""
    path.write_text(json.dumps(value, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Exported:
    """An exported folder on its way back.

    Attributes:
        path: The folder.
        config: The configuration that it was exported from.
        networks: Tensors of each network, named by Flax paths, in our layout.
        sources: Where the networks came from, as far as is known.
        data: What it was trained on, as far as is known.
    """

    path: Path
    config: ExperimentConfig
    networks: dict[str, list[LazyTensor]]
    sources: list[Source]
    data: TrainingData | None


def is_exported_folder(folder: Path) -> bool:
    """Whether `export_pipeline` wrote it."""
    return (folder / EXPERIMENT_FILE).is_file() and (folder / "model_index.json").is_file()


def lost_of_export(folder: Path) -> str | None:
    """Of a folder with parts that an export alone has: the file without which it cannot be read as one, if gone."""
    own = ("fusion", "hint_adapter", "hint_encoder", "null_tokens", "reference_projection")
    if not any((folder / name).is_dir() for name in own):
        return None
    return next((name for name in (EXPERIMENT_FILE, "model_index.json") if not (folder / name).is_file()), None)


def open_exported(folder: Path) -> Exported:
    """What `export_pipeline` wrote, or what somebody trained on and saved in its place.

    Raises:
        WeightsError: the configuration is damaged, or a tensor is missing, unexpected or misshapen.
    """
    config = exported_config(folder)
    expected = exported_shapes(folder, config)
    original = original_positions(folder, config)
    networks: dict[str, list[LazyTensor]] = {}
    for network in networks_in(folder, config):
        tensors = import_tensors(network.layout, open_tensors(folder / network.folder), expected[network.network])
        if network.network == "reference_encoder" and original is not None:
            (table,) = import_tensors(FLAX, *original)
            tensors = [table if tensor.name == POSITIONS else tensor for tensor in tensors]
        networks[network.network] = tensors
    return Exported(folder, config, networks, read_sources(folder), read_training_data(folder))


def exported_config(folder: Path) -> ExperimentConfig:
    """The configuration in an exported folder.

    Raises:
        WeightsError: it is damaged.
    """
    try:
        return config_from_json((folder / EXPERIMENT_FILE).read_text())
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise WeightsError(f"{folder / EXPERIMENT_FILE}: not a configuration ({error})") from None


def networks_in(folder: Path, config: ExperimentConfig) -> list[ExportedNetwork]:
    """The networks that an exported folder of this configuration must hold, and VGG if it is there."""
    networks = exported_networks(config.model)
    return [*networks, perceptual_network(config.model)] if (folder / "vgg").is_dir() else networks


def exported_shapes(folder: Path, config: ExperimentConfig) -> dict[str, dict[str, Shape]]:
    """Flax shapes of each network's tensors as an exported folder has them.

    They are the model's, but for the reference encoder's position table where the published one lies beside it.
    """
    shapes = {name: flax_shapes(tree) for name, tree in DiffuseToChoose(config.model).shapes().items()}
    if (folder / f"{POSITIONS_FILE}.safetensors").is_file():
        size = replace(exported_encoder(config.model), position_image_size=None)
        shapes["reference_encoder"][POSITIONS] = (1, size.num_positions, size.hidden_size)
    return shapes


def needed_files(config: ExperimentConfig) -> list[str]:
    """Files of an exported folder beside the networks' weights, relative to it."""
    names = [EXPERIMENT_FILE, "model_index.json", "scheduler/scheduler_config.json", *PIPELINE_FILES]
    for network in exported_networks(config.model):
        names += [f"{network.folder}/config.json"] + ([f"{network.folder}/{network.code}"] if network.code else [])
    if _has_original_positions(exported_encoder(config.model)):
        names.append(f"{POSITIONS_FILE}.safetensors")
    return names


def _has_original_positions(reference: DINOv2Config) -> bool:
    """Whether the position table of the checkpoint is for another size than the exported one."""
    return reference.num_positions != replace(reference, position_image_size=None).num_positions


def original_positions(folder: Path, config: ExperimentConfig) -> tuple[TensorSource, dict[str, Shape]] | None:
    """The published position table beside the reference encoder, and what it must hold; None if it is not there.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / f"{POSITIONS_FILE}.safetensors"
    if not path.is_file():
        return None
    shapes = flax_shapes(DiffuseToChoose(config.model).shapes()["reference_encoder"])
    return open_tensors(path), {POSITIONS: shapes[POSITIONS]}
