"""What a file or folder of weights is: its networks, layouts, sizes and types, what is missing and what is too much."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from dtc_jax.weights.detect import detect_networks
from dtc_jax.weights.export_pytorch import EXPERIMENT_FILE, PIPELINE_CLASS, is_exported_folder
from dtc_jax.weights.inspect_own import exported_folder, exported_part, model_folder, run_folder
from dtc_jax.weights.inspection import Inspection, Part, absent_part, describe, make_part
from dtc_jax.weights.mapping import differences
from dtc_jax.weights.model_folder import is_model_folder
from dtc_jax.weights.starting_parts import TAESD_FILES, is_taesd
from dtc_jax.weights.tensors import TensorSource, WeightsError, open_tensors

__all__ = ["Inspection", "Part", "describe", "inspect"]


def inspect(path: str | os.PathLike[str], variant: str | None = None) -> Inspection:
    """Look at a file or folder; names and shapes are read, values are not.

    Args:
        path: What `open_tensors` takes, a diffusers folder of several networks, an exported folder or one network's
            folder in it, a model folder or a run folder.
        variant: Of the files in a folder, e.g. `fp16`.

    Raises:
        WeightsError: there is nothing, or it cannot be read. (That a network is not known is no error here.)
        ModelFolderError: a model or run folder whose configuration cannot be read.
    """
    target = Path(path)
    if (target / "checkpoints").is_dir():
        return run_folder(target)
    if is_exported_folder(target):
        return exported_folder(target, variant)
    if is_taesd(target):
        parts = [part for name in TAESD_FILES for part in _networks(open_tensors(target / name))[0]]
        return Inspection(target, "folder of TAESD's two files", parts, {})
    if (target / "model_index.json").is_file() or any((target / name).is_dir() for name in ("unet", "vae")):
        return _published_folder(target, variant)
    if is_model_folder(target) and not _is_published(target):
        return model_folder(target)
    if target.is_dir() and is_exported_folder(target.resolve().parent):
        part = exported_part(target, variant)
        if part is not None:
            return Inspection(target, "folder of a network", [part], {}, "of an exported folder")
    source = open_tensors(target, variant)
    parts, others = _networks(source)
    return Inspection(target, "folder of a network" if target.is_dir() else "file", parts, others)


def _published_folder(target: Path, variant: str | None) -> Inspection:
    parts: list[Part] = []
    for folder in sorted(child for child in target.iterdir() if child.is_dir()):
        parts += _folder(folder, variant)
    index = target / "model_index.json"
    if index.is_file() and f'"{PIPELINE_CLASS}"' in index.read_text(errors="replace"):
        # Without the configuration, the sizes of our own parts cannot be told.
        return Inspection(target, "exported folder", parts, {}, missing=[EXPERIMENT_FILE])
    return Inspection(target, "folder of several networks", parts, {})


def _is_published(folder: Path) -> bool:
    """Whether its config.json is one of diffusers or transformers and not an experiment's."""
    text = (folder / "config.json").read_text(errors="replace")
    return '"_class_name"' in text or '"model_type"' in text


def _folder(folder: Path, variant: str | None) -> list[Part]:
    names = [path.name for path in folder.iterdir()]
    if not any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names):
        return []  # a tokenizer, a scheduler
    try:
        return _networks(open_tensors(folder, variant, or_plain=True))[0]
    except WeightsError as error:
        return [absent_part(folder, "unknown", str(error))]


def _networks(source: TensorSource) -> tuple[list[Part], dict[str, int]]:
    names = source.keys()
    try:
        found = detect_networks(source)
    except WeightsError as error:
        return [make_part(source.path, "unknown", "", source, names, "", str(error))], {}
    parts: list[Part] = []
    covered: set[str] = set()
    for detected in found:
        inner = detected.source
        covered |= {inner.full_name(name) for name in inner.keys()}  # noqa: SIM118
        layout = detected.layout
        problem = str(differences(layout, inner, detected.shapes))
        parts.append(
            make_part(source.path, detected.network, layout.name, inner, inner.keys(), detected.reason, problem)
        )
    return parts, dict(Counter(name.split(".")[0] for name in names if name not in covered))
