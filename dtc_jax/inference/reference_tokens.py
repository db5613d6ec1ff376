"""The tokens of a catalogue of products, computed once: a safetensors file with one tensor for each reference.

A tensor's name is the SHA-256 of the reference as the image encoder takes it (framed, at its size): whatever file it
comes from and however that was read, the same pixels have the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from jax.typing import DTypeLike
from jaxtyping import Float, UInt8

from dtc_jax.config import ExperimentConfig, ReferenceConfig
from dtc_jax.data.images import InputError
from dtc_jax.inference.settings import SamplerSettings
from dtc_jax.inference.stages import encode_reference
from dtc_jax.weights.fingerprint import fingerprint
from dtc_jax.weights.safetensors_files import SafetensorsFile
from dtc_jax.weights.tensor_source import WeightsError

NETWORKS = ("reference_encoder", "reference_projection")
"""What tokens depend on."""

_FORMAT = "dtc_jax catalogue 1"
_NAMES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.float16): "F16"}
# Of one entry in the header: 64 digits of its name, its shape and offsets.
_ENTRY_BYTES = 256


def reference_key(reference: UInt8[np.ndarray, "r r 3"]) -> str:
    """The name of a framed reference in a catalogue."""
    return hashlib.sha256(str(reference.shape).encode() + np.ascontiguousarray(reference).tobytes()).hexdigest()


def encoder_fingerprint(config: ExperimentConfig, params: Mapping[str, Any], dtype: DTypeLike) -> str:
    """Which networks, and in which arithmetic: tokens of others must not be used."""
    described = f"{config.model.reference_encoder!r} {config.model.unet.cross_attention_dim} {jnp.dtype(dtype).name} "
    if config.model.reference != ReferenceConfig():  # as it was described before there was a choice
        described += f"{config.model.reference!r} "
    weights = fingerprint({name: params[name] for name in NETWORKS})
    return hashlib.sha256((described + weights).encode()).hexdigest()[:32]


class Catalogue:
    """Tokens in a file, read one by one as they are needed."""

    def __init__(self, file: SafetensorsFile) -> None:
        self._file = file
        self._names = frozenset(file.keys())

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], config: ExperimentConfig, params: Mapping[str, Any], dtype: DTypeLike
    ) -> Catalogue:
        """A catalogue for a model.

        Args:
            path: what `CatalogueWriter` wrote.
            config: the model's.
            params: need `NETWORKS`.
            dtype: type of the networks' arithmetic.

        Raises:
            InputError: not a catalogue, or one of other networks or another arithmetic.
        """
        try:
            file = SafetensorsFile(Path(path))
            with safetensors.safe_open(path, framework="numpy") as opened:
                metadata = opened.metadata() or {}
        except WeightsError as error:
            raise InputError(f"catalogue {error}") from None
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"catalogue {path}: cannot be read ({' '.join(str(error).split())})") from None
        if metadata.get("format") != _FORMAT:
            raise InputError(f"catalogue {path}: not one; python -m dtc_jax.inference.catalogue makes it")
        if metadata.get("fingerprint") != encoder_fingerprint(config, params, dtype):
            raise InputError(
                f"catalogue {path}: made by another image encoder or in another arithmetic than this checkpoint's "
                f"({metadata.get('made_by', 'unknown')}); make it again with --checkpoint"
            )
        return cls(file)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def tokens(self, key: str) -> Float[np.ndarray, "l d"]:
        """The tokens of one reference.

        Raises:
            InputError: they cannot be read.
        """
        try:
            return self._file.read(key)
        except WeightsError as error:
            raise InputError(f"catalogue {error}") from None


def with_tokens(
    catalogue: Catalogue,
    batch: Sequence[Mapping[str, np.ndarray]],
    params: Mapping[str, Any],
    settings: SamplerSettings,
) -> list[dict[str, np.ndarray]]:
    """Cases with `tokens` in place of `reference`: the catalogue's, or computed where it has none."""
    found: dict[str, np.ndarray] = {}
    keys = [reference_key(case["reference"]) for case in batch]
    for key, case in zip(keys, batch, strict=True):
        if key not in found and key in catalogue:
            found[key] = catalogue.tokens(key)
        elif key not in found:
            found[key] = np.asarray(encode_reference(params, case["reference"][None], settings))[0]
    return [
        {**{name: value for name, value in case.items() if name != "reference"}, "tokens": found[key]}
        for key, case in zip(keys, batch, strict=True)
    ]


class CatalogueWriter:
    """Writes a catalogue as its tokens come, beside its destination; renamed at the end of the `with` block.

    The header, which comes first, is written last, into space kept for it: the format lets it end in blanks.
    """

    def __init__(self, path: Path, most: int, metadata: Mapping[str, str]) -> None:
        """Keep space for at most `most` references.

        Raises:
            OSError: the file cannot be written (here and below).
        """
        self._path, self._scratch = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, **metadata}}
        self._space = 4096 + _ENTRY_BYTES * most
        self._end = 0
        self._file: IO[bytes] = self._scratch.open("wb")
        self._file.seek(8 + self._space)

    def __enter__(self) -> CatalogueWriter:
        return self

    def __contains__(self, key: object) -> bool:
        return key in self._header

    def __len__(self) -> int:
        return len(self._header) - 1

    def add(self, key: str, tokens: Float[np.ndarray, "l d"]) -> None:
        """Write one reference's tokens."""
        content = np.ascontiguousarray(tokens).view(np.uint8).tobytes()
        offsets = [self._end, self._end + len(content)]
        self._header[key] = {"dtype": _NAMES[tokens.dtype], "shape": list(tokens.shape), "data_offsets": offsets}
        self._file.write(content)
        self._end = offsets[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                header = json.dumps(self._header, separators=(",", ":")).encode().ljust(self._space)
                self._file.seek(0)
                self._file.write(self._space.to_bytes(8, "little") + header)
                self._file.close()
                os.replace(self._scratch, self._path)
        finally:
            self._file.close()
            self._scratch.unlink(missing_ok=True)
