"""PyTorch's own files (.ckpt, .pth, .pt, .bin). The only module that reads pickles, and it runs none of their code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dtc_jax.weights.tensor_source import Shape, WeightsError

INERT_GLOBALS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
"""Classes that training checkpoints of the LDM family name beside their tensors (as keys of `callbacks`); an empty
class stands in for each, so that nothing is imported or run."""


class TorchFile:
    """One PyTorch file as a `TensorSource`; tensors stay in the mapped file until they are read."""

    def __init__(self, path: Path) -> None:
        """Load the structure of the file; always `weights_only=True`.

        Raises:
            WeightsError: PyTorch is not installed, or the file is cut short, holds code, or is not a state dict.
        """
        self._path = path
        self._tensors = _state_dict(_load(path), path)

    @property
    def path(self) -> Path:
        return self._path

    def keys(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> Shape:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype:
        name_of_type = str(self._tensors[name].dtype).removeprefix("torch.")
        try:
            return np.dtype(getattr(ml_dtypes, name_of_type, None) or name_of_type)
        except TypeError:
            raise WeightsError(f"{self._path}: {name} has the type {name_of_type}, which cannot be read") from None

    def read(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name].detach().contiguous()
        dtype = self.dtype(name)
        if dtype.kind == "V":  # a type that numpy itself does not have
            carrier = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
            return tensor.view(carrier).numpy().view(dtype).copy()
        return tensor.numpy().copy()

    def origin(self, name: str) -> Path:
        return self._path

    def full_name(self, name: str) -> str:
        return name


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path}: reading this file needs PyTorch (pip install 'dtc-jax[pytorch]'); a .safetensors file does not"
        ) from None
    inert: list[Any] = [(type(name.rsplit(".", 1)[1], (), {}), name) for name in INERT_GLOBALS]
    try:
        with torch.serialization.safe_globals(inert):
            # Files older than PyTorch 1.6 are no zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # PyTorch raises RuntimeError, UnpicklingError, EOFError, ValueError, ...
        raise WeightsError(f"{path}: {_reason(path, str(error))}") from None


def _reason(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL (\S+)", message)
    if found:
        return f"holds more than tensors ({found.group(1)}) and could run code: refused; use a .safetensors version"
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04"):
        return "cut short or damaged: the end of the archive is missing; download or copy it again"
    if start.startswith(b"version https://"):
        return "a Git LFS pointer, not the file itself (git lfs pull)"
    first_line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return f"not a PyTorch file of weights, or cut short ({first_line[:160]})"


def _state_dict(loaded: Any, path: Path) -> dict[str, Any]:
    """The mapping of names to tensors inside what was loaded: itself, its `state_dict`, or its only such entry."""
    import torch

    def is_state_dict(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in value.values())

    if isinstance(loaded, Mapping) and "state_dict" in loaded:
        loaded = loaded["state_dict"]
    elif isinstance(loaded, Mapping) and not is_state_dict(loaded):
        nested = [key for key, value in loaded.items() if is_state_dict(value)]
        if len(nested) > 1:
            raise WeightsError(f"{path}: holds several state dicts ({', '.join(map(str, nested))}); save one by itself")
        loaded = loaded[nested[0]] if nested else loaded
    if not is_state_dict(loaded):
        raise WeightsError(f"{path}: holds no state dict (names and tensors), but a {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    return dict(loaded)
