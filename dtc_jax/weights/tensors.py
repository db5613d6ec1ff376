"""Weights in files: open whatever holds them as named tensors, and write named tensors, one in memory at a time.

    source = open_tensors("unet/")              # a .safetensors file, shards, a folder, or a PyTorch pickle
    source.keys(), source.shape(name), source.dtype(name), source.read(name), source.origin(name)
    write_tensors(folder, "model", tensors)     # model.safetensors, or shards and an index

No PyTorch is needed for safetensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dtc_jax.weights.safetensors_files import SafetensorsFile, write_tensors
from dtc_jax.weights.tensor_source import (
    ArraySource,
    LazyTensor,
    RenamedSource,
    Shape,
    TensorSource,
    WeightsError,
    all_finite,
    cast,
    is_float,
    with_prefix,
)
from dtc_jax.weights.torch_files import TorchFile

__all__ = [
    "ArraySource",
    "LazyTensor",
    "RenamedSource",
    "SafetensorsFile",
    "Shape",
    "ShardedSource",
    "TensorSource",
    "WeightsError",
    "all_finite",
    "cast",
    "is_float",
    "lacks_variant",
    "open_tensors",
    "with_prefix",
    "write_tensors",
]

PICKLE_ENDINGS = (".ckpt", ".pth", ".pt", ".bin")


class ShardedSource:
    """Several files as one source."""

    def __init__(self, path: Path, files: Mapping[str, TensorSource]) -> None:
        """`files` says for every tensor which of the opened files holds it."""
        self._path = path
        self._files = dict(files)

    @property
    def path(self) -> Path:
        return self._path

    def keys(self) -> Sequence[str]:
        return list(self._files)

    def shape(self, name: str) -> Shape:
        return self._files[name].shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self._files[name].dtype(name)

    def read(self, name: str) -> np.ndarray:
        return self._files[name].read(name)

    def origin(self, name: str) -> Path:
        return self._files[name].origin(name)

    def full_name(self, name: str) -> str:
        return name


def open_tensors(path: str | os.PathLike[str], variant: str | None = None, or_plain: bool = False) -> TensorSource:
    """Open a file or folder of weights.

    Args:
        path: A .safetensors file; a PyTorch file (.ckpt, .pth, .pt, .bin: needs PyTorch); an index of shards
            (*.index.json); or a folder that holds one of these. In a folder, safetensors come before pickles and
            files without a variant before those with one.
        variant: In a folder, take this variant: `fp16` for `model.fp16.safetensors`.
        or_plain: If a folder has no such variant, take its plain file; `lacks_variant` tells of it.

    Raises:
        WeightsError: there is no such thing, it cannot be told which file is meant, or it is damaged.
    """
    target = Path(path)
    if target.is_dir():
        target = _file_in(target, variant, or_plain)
    if not target.is_file():
        raise WeightsError(f"{target}: no such file or folder")
    if target.name.endswith(".json"):
        return _open_index(target)
    return _open_file(target)


def _open_file(path: Path) -> TensorSource:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLE_ENDINGS:
        return TorchFile(path)
    raise WeightsError(
        f"{path}: weights are files that end in .safetensors, {', '.join(PICKLE_ENDINGS)} or .index.json"
    )


def lacks_variant(source: TensorSource, named: Path, variant: str | None) -> bool:
    """Whether a folder was opened that has no such variant, and its plain file taken.

    Args:
        source: What `open_tensors` opened, or a network in it.
        named: What it was asked for.
        variant: Which variant.
    """
    return variant is not None and named.is_dir() and _variant(source.path.name) != variant


def _file_in(folder: Path, variant: str | None, or_plain: bool) -> Path:
    """The file of weights that a folder is about."""
    if (folder / "model_index.json").is_file():
        raise WeightsError(f"{folder}: a folder of several networks; name one of them, e.g. {folder / 'unet'}")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    indices = [name for name in names if name.endswith(".json") and ".index." in name]
    # Shards are found through their index.
    single = [name for name in names if "-of-" not in name]
    groups = (
        [name for name in indices if ".safetensors." in name],
        [name for name in single if name.endswith(".safetensors")],
        [name for name in indices if ".bin." in name],
        [name for name in single if name.endswith(PICKLE_ENDINGS) and name not in _NOT_WEIGHTS],
    )
    plain = [None] if or_plain else []
    for wanted in [variant, *plain] if variant is not None else [None, "fp16", "bf16"]:
        for group in groups:
            matching = [name for name in group if _variant(name) == wanted]
            if len(matching) == 1:
                return folder / matching[0]
            if matching:
                raise WeightsError(f"{folder}: several files of weights ({', '.join(matching)}); name one of them")
    listed = ", ".join(name for group in groups for name in group)
    found = f"; found {listed}" if listed else ""
    raise WeightsError(f"{folder}: no file of weights{f' of the variant {variant}' if variant else ''} in it{found}")


_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt")


def _variant(name: str) -> str | None:
    """`fp16` of `model.fp16.safetensors`, `model.safetensors.index.fp16.json`, `model.fp16.safetensors.index.json`."""
    stem = name.removesuffix(".json").replace(".index", "")
    parts = [part for part in stem.split(".")[1:] if f".{part}" not in (".safetensors", *PICKLE_ENDINGS)]
    return ".".join(parts) or None


def _open_index(path: Path) -> TensorSource:
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{path}: not an index of shards (JSON with a `weight_map`)") from None
    opened: dict[str, TensorSource] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise WeightsError(f"{path}: names a shard outside of its folder: {file}")
        if not (path.parent / file).is_file():
            raise WeightsError(f"{path.parent / file}: the shard is missing, which {path.name} names")
        opened[file] = _open_file(path.parent / file)
    for file, source in opened.items():
        here, indexed = set(source.keys()), {name for name, where in files.items() if where == file}
        for name in sorted(here ^ indexed):
            problem = "is not in the shard" if name in indexed else "is in the shard but not in the index"
            raise WeightsError(f"{path.parent / file}: {name} {problem}; {path.name} belongs to other files")
    return ShardedSource(path, {name: opened[file] for name, file in files.items()})
