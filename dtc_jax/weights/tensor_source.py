"""What every file of weights looks like to the conversion: named tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.typing import DTypeLike

Shape = tuple[int, ...]


class WeightsError(ValueError):
    """Weights that cannot be used. One line: the file, the tensor, what was found and what was expected."""


class TensorSource(Protocol):
    """Named tensors in one or more files; nothing is read before `read`, and nothing is kept after it."""

    @property
    def path(self) -> Path:
        """What the user named: a file or a folder; for messages."""
        ...

    def keys(self) -> Sequence[str]:
        """Names of all tensors, in the file's order."""
        ...

    def shape(self, name: str) -> Shape:
        """Shape as stored."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """Type as stored; bfloat16 and the 8-bit floats are ml_dtypes'."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor, in the type in which it is stored.

        Raises:
            WeightsError: it cannot be read.
        """
        ...

    def origin(self, name: str) -> Path:
        """The file that holds this tensor (a shard, say)."""
        ...

    def full_name(self, name: str) -> str:
        """The tensor's name in its file, or the name that it would have there; views shorten names."""
        ...


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is going to be written: all but its values are known.

    Attributes:
        name: Its name in the destination.
        shape: Its shape there.
        dtype: Its type there.
        read: Makes the values, of this shape and type; called once, when the tensor's turn comes.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class ArraySource:
    """Arrays in memory, as a source.

    Attributes:
        arrays: Name to array (numpy, or JAX arrays that this process can fetch).
        path: What messages call them.
    """

    arrays: Mapping[str, Any]
    path: Path = Path("parameters")

    def keys(self) -> Sequence[str]:
        return list(self.arrays)

    def shape(self, name: str) -> Shape:
        return tuple(self.arrays[name].shape)

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self.arrays[name].dtype)

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self.arrays[name])

    def origin(self, name: str) -> Path:
        return self.path

    def full_name(self, name: str) -> str:
        return name


@dataclass(frozen=True)
class RenamedSource:
    """Some of the tensors of a source under other names.

    Attributes:
        source: Where the tensors are.
        names: The names here; each must exist there as `spell(name)`.
        spell: From any name here, present or not, to the name there.
    """

    source: TensorSource
    names: Sequence[str]
    spell: Callable[[str], str]

    @property
    def path(self) -> Path:
        return self.source.path

    def keys(self) -> Sequence[str]:
        return self.names

    def shape(self, name: str) -> Shape:
        return self.source.shape(self.spell(name))

    def dtype(self, name: str) -> np.dtype:
        return self.source.dtype(self.spell(name))

    def read(self, name: str) -> np.ndarray:
        return self.source.read(self.spell(name))

    def origin(self, name: str) -> Path:
        return self.source.origin(self.spell(name))

    def full_name(self, name: str) -> str:
        return self.source.full_name(self.spell(name))


def with_prefix(source: TensorSource, prefix: str) -> RenamedSource:
    """The tensors whose names start with `prefix`, without it: one network of a file that holds several."""
    names = [name[len(prefix) :] for name in source.keys() if name.startswith(prefix)]  # noqa: SIM118
    return RenamedSource(source, names, lambda name: prefix + name)


def is_float(dtype: DTypeLike) -> bool:
    """Whether a type is floating point; bfloat16 and the 8-bit floats come from ml_dtypes, whose kind is "V"."""
    return np.dtype(dtype).kind in "fV"


def all_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinities."""
    if not is_float(array.dtype):
        return True
    return bool(np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32)).all())


def cast(array: np.ndarray, dtype: DTypeLike, what: str) -> np.ndarray:
    """A floating-point array in another type; integers stay as they are.

    Args:
        array: Finite values.
        dtype: The type wanted.
        what: What the message calls the array.

    Raises:
        WeightsError: a value is beyond the range of the type.
    """
    target = np.dtype(dtype)
    if array.dtype == target or not is_float(array.dtype):
        return array
    with np.errstate(over="ignore"):  # checked below
        result = array.astype(target)
    if not all_finite(result) and all_finite(array):
        largest = float(np.abs(array.astype(np.float64)).max())
        raise WeightsError(f"{what}: {largest:g} is beyond the range of {target.name}; write float32 or bfloat16")
    return result
