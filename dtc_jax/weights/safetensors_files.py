"""safetensors files, read one tensor at a time and written the same way (https://github.com/huggingface/safetensors).

The format: 8 bytes with the header's length (little-endian), the header in JSON (name to dtype, shape and the two
offsets of the values), then the values. Tensors are read with plain file reads: of a mapped file, all pages that were
ever touched would count as this process's memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

from dtc_jax.weights.new_folder import refuse_existing
from dtc_jax.weights.tensor_source import LazyTensor, Shape, WeightsError, cast, is_float

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
"""Names of the types in the header."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000


class SafetensorsFile:
    """One safetensors file as a `TensorSource`."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            WeightsError: not a safetensors file, or one that is cut short.
        """
        self._path = path
        self._entries, self._start = _read_header(path)

    @property
    def path(self) -> Path:
        return self._path

    def keys(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> Shape:
        return self._entries[name][1]

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name][0]

    def read(self, name: str) -> np.ndarray:
        dtype, shape, offset = self._entries[name]
        try:
            with self._path.open("rb") as file:
                file.seek(self._start + offset)
                array = np.fromfile(file, dtype, math.prod(shape))
        except OSError as error:
            raise WeightsError(f"{self._path}: {name} cannot be read ({error.strerror or error})") from None
        if array.size != math.prod(shape):
            raise WeightsError(f"{self._path}: {name} ends early; the file was cut short")
        return array.reshape(shape)

    def origin(self, name: str) -> Path:
        return self._path

    def full_name(self, name: str) -> str:
        return name


def _read_header(path: Path) -> tuple[dict[str, tuple[np.dtype, Shape, int]], int]:
    """Entries (type, shape, offset) in the order of the values, and where the values start."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > _MAX_HEADER:
                raise WeightsError(f"{path}: not a safetensors file{_what_else(path)}")
            if 8 + length > size:
                raise WeightsError(f"{path}: cut short: {size:,} bytes, and the header alone has {length + 8:,}")
            header = json.loads(file.read(length))
        entries = {name: _entry(name, value) for name, value in header.items() if name != "__metadata__"}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except WeightsError:
        raise
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise WeightsError(f"{path}: not a safetensors file: its header is damaged") from None
    except _HeaderError as error:
        raise WeightsError(f"{path}: {error}") from None
    end = 0
    for name, (dtype, shape, offset) in sorted(entries.items(), key=lambda item: item[1][2]):
        if offset != end:
            raise WeightsError(f"{path}: {name} starts at byte {offset} instead of {end}: the header is damaged")
        end += math.prod(shape) * dtype.itemsize
    if 8 + length + end != size:
        kind = "cut short" if 8 + length + end > size else "damaged"
        raise WeightsError(f"{path}: {kind}: {size:,} bytes, expected {8 + length + end:,}; download or copy it again")
    return dict(sorted(entries.items(), key=lambda item: item[1][2])), 8 + length


class _HeaderError(Exception):
    pass


def _entry(name: str, value: dict[str, Any]) -> tuple[np.dtype, Shape, int]:
    dtype, shape = DTYPES.get(value["dtype"]), tuple(value["shape"])
    if dtype is None:
        raise _HeaderError(f"{name} has the type {value['dtype']}, which cannot be read; convert it to a wider one")
    start, end = value["data_offsets"]
    if not all(type(size) is int and 0 <= size < 2**63 for size in (*shape, start, end)):
        raise _HeaderError(f"{name} has a size or an offset that is none: the header is damaged")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise _HeaderError(f"{name} is {list(shape)} of {value['dtype']}, but has {end - start} bytes")
    return dtype, shape, start


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer: fetch the file itself (git lfs pull)"
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        return " but a PyTorch pickle: give it the ending .ckpt, .pth, .pt or .bin"
    if start.lstrip()[:1] == b"<":
        return " but a web page: the download went wrong"
    return ""


def write_tensors(
    folder: Path,
    name: str,
    tensors: Iterable[LazyTensor],
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = 5_000_000_000,
    metadata: dict[str, str] | None = None,
) -> list[Path]:
    """Write `NAME.safetensors`, or shards and `NAME.safetensors.index.json`, one tensor in memory at a time.

    Files are written beside their final names and renamed at the end, the index last: an error leaves nothing.

    Args:
        folder: Existing folder.
        name: File name without its ending, e.g. `diffusion_pytorch_model` or `model`.
        tensors: What to write; must not be empty, names must differ.
        dtype: Store floating-point tensors in this type; None keeps theirs. Integers are never converted.
        max_shard_bytes: Begin a new shard before one would grow larger (a single tensor may).
        metadata: Of the header; diffusers and transformers want {"format": "pt"}, which is the default.

    Returns:
        The files written.

    Raises:
        WeightsError: a destination exists already, a disk is full, a value does not fit the type or its description.
    """
    described = [(tensor, _stored_dtype(tensor, dtype)) for tensor in tensors]
    if len({tensor.name for tensor, _ in described}) != len(described) or not described:
        raise ValueError(f"{name}: no tensors, or two of one name")
    shards = _shards(described, max_shard_bytes)
    count = len(shards)
    names = [f"{name}.safetensors"]
    if count > 1:
        names = [f"{name}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    index = folder / f"{name}.safetensors.index.json"
    targets = [folder / file for file in names] + ([index] if count > 1 else [])
    for target in targets:
        refuse_existing(target)
    written: list[tuple[Path, Path]] = []
    try:
        for target, shard in zip(targets, shards, strict=False):
            written.append((_temporary(target), target))
            _write_file(written[-1][0], target, shard, metadata or {"format": "pt"})
        if count > 1:
            written.append((_temporary(index), index))
            written[-1][0].write_text(_index_json(names, shards))
        for temporary, target in written:
            temporary.rename(target)
    except OSError as error:
        _remove([*targets])
        raise WeightsError(f"{targets[0]}: cannot be written ({error.strerror or error})") from None
    finally:
        _remove([temporary for temporary, _ in written])
    return targets


_Described = Sequence[tuple[LazyTensor, np.dtype]]


def _stored_dtype(tensor: LazyTensor, dtype: DTypeLike | None) -> np.dtype:
    return np.dtype(dtype) if dtype is not None and is_float(tensor.dtype) else np.dtype(tensor.dtype)


def _bytes(described: _Described) -> int:
    return sum(math.prod(tensor.shape) * dtype.itemsize for tensor, dtype in described)


def _shards(described: _Described, limit: int) -> list[list[tuple[LazyTensor, np.dtype]]]:
    shards: list[list[tuple[LazyTensor, np.dtype]]] = [[]]
    filled = 0
    for item in described:
        size = _bytes([item])
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += size
    # As the reference implementation does it: by alignment first, so that every tensor is aligned to its own type.
    return [sorted(shard, key=lambda item: (-item[1].itemsize, item[0].name)) for shard in shards]


def _temporary(target: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files
    return Path(name)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # absent, or in a folder that cannot be changed
            path.unlink()


def _index_json(names: Sequence[str], shards: Sequence[_Described]) -> str:
    weight_map = {tensor.name: file for file, shard in zip(names, shards, strict=True) for tensor, _ in shard}
    total = sum(_bytes(shard) for shard in shards)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)


def _write_file(path: Path, target: Path, described: _Described, metadata: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for tensor, dtype in described:
        size = math.prod(tensor.shape) * dtype.itemsize
        header[tensor.name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Without a buffer, so that it is known which tensor a full disk has no room for.
    with path.open("wb", buffering=0) as file:
        _write_all(file, len(text).to_bytes(8, "little") + text)
        for tensor, dtype in described:
            values = _bytes_of(tensor, dtype, target)
            try:
                _write_all(file, values)
            except OSError as error:
                reason = error.strerror or error
                raise WeightsError(f"{target}: {tensor.name} cannot be written ({reason})") from None
            del values


def _write_all(file: io.FileIO, values: bytes | memoryview) -> None:
    """Everything: the system may take less at a time, and more than 2 GB never."""
    left = memoryview(values)
    while left:
        left = left[file.write(left) :]


def _bytes_of(tensor: LazyTensor, dtype: np.dtype, target: Path) -> memoryview:
    """The values as they are stored. A function of its own, so that no tensor outlives its turn."""
    array = tensor.read()
    if tuple(array.shape) != tuple(tensor.shape):
        raise WeightsError(f"{target}: {tensor.name} is {array.shape}, not {tensor.shape}")
    stored = cast(array, dtype, f"{target}: {tensor.name}")
    if stored.dtype != dtype:
        raise WeightsError(f"{target}: {tensor.name} is {stored.dtype}, not {dtype}")
    return np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data
