"""PyTorch's own files (.ckpt, .pth, .pt, .bin). The only module that reads pickles, and it runs none of their code."""

from __future__ import annotations

import contextlib
import pickletools
import re
import warnings
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
        if dtype.isbuiltin != 1:  # a type that numpy itself does not have
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
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it then refuses
            # Files older than PyTorch 1.6 are no zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # PyTorch raises RuntimeError, UnpicklingError, EOFError, ValueError, ...
        raise WeightsError(f"{path}: {_reason(path, str(error))}") from None


def _reason(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL (\S+)", message)
    protocol, code = (0, found.group(1)) if found else _look_into(path)
    if code:
        return f"holds more than tensors ({code}) and could run code: refused; use a .safetensors version"
    if protocol > 2:
        return f"a pickle of protocol {protocol}, expected 2 as torch.save writes it; use a .safetensors version"
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04"):
        if zipfile.is_zipfile(path):
            return "a zip archive, but not one of PyTorch's, or damaged; download or copy it again"
        return "cut short or damaged: the end of the archive is missing; download or copy it again"
    if start.startswith(b"version https://"):
        return "a Git LFS pointer, not the file itself (git lfs pull)"
    # Of a file that it does not understand, PyTorch says first of all how to load it unsafely.
    first_line = "" if "weights_only" in message else " ".join(message.split())
    return "not a PyTorch file of weights, or cut short" + (f" ({first_line[:160]})" if first_line else "")


def _look_into(path: Path) -> tuple[int, str]:
    """Protocol of a file's pickle, and the first thing that it names and that no tensor needs; nothing is run.

    PyTorch's safe reader stops at the first instruction of a newer protocol and does not say what would have come.
    """
    protocol, words, known, top = 0, ["", ""], list[str](), ""
    try:
        with contextlib.ExitStack() as closing:
            if zipfile.is_zipfile(path):
                archive = closing.enter_context(zipfile.ZipFile(path))
                (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
                file = closing.enter_context(archive.open(name))
            else:
                file = closing.enter_context(path.open("rb"))
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "PROTO":
                    protocol = int(argument or 0)
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    named = str(argument).replace(" ", ".") if operation.name == "GLOBAL" else ".".join(words[-2:])
                    if not named.startswith(_OF_TENSORS):
                        return protocol, named
                if operation.name == "MEMOIZE":
                    known.append(top)
                    continue
                top = argument if isinstance(argument, str) else ""
                if operation.name in ("BINGET", "LONG_BINGET"):
                    top = known[int(argument or 0)]
                if top:
                    words = [words[-1], top]
    except Exception:  # no pickle at all, or one that ends early; the caller looks further
        return 0, ""
    return protocol, ""


_OF_TENSORS = ("torch.", "collections.OrderedDict", "_codecs.encode", "numpy.")


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
        if not isinstance(name, str):
            raise WeightsError(f"{path}: a tensor is called {name!r}, which is no name; save a state dict")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            kind = "quantized" if value.is_quantized else "empty (meta)" if value.is_meta else "sparse"
            raise WeightsError(f"{path}: {name} is {kind}; save it as an ordinary tensor")
    return dict(loaded)
