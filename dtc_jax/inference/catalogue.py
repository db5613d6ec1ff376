"""The image encoder's pass over a catalogue of products, once for all samplings.

    python -m dtc_jax.inference.catalogue --references products/ --output products.safetensors
    python sample.py --manifest cases.jsonl --output-dir results --catalogue products.safetensors

Errors of use end with exit code 2 and one line; a photo that cannot be used is reported, the others are encoded, and
the exit code is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError, ModelConfig
from dtc_jax.data.images import InputError, read_reference
from dtc_jax.data.locations import Location
from dtc_jax.data.manifest import Case, read_manifest
from dtc_jax.data.references import clean_reference, frame_reference
from dtc_jax.inference.jobs import each_reference
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.reference_tokens import (
    NETWORKS,
    CatalogueWriter,
    encoder_fingerprint,
    reference_key,
)
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.inference.settings import sampler_settings
from dtc_jax.inference.stages import encode_reference
from dtc_jax.weights.model_folder import ModelFolderError
from dtc_jax.weights.run_folder import checkpoint_config

_READERS = 4

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class CatalogueArguments:
    """Compute the reference tokens of a catalogue of products once, for sample.py --catalogue."""

    references: Annotated[Path, tyro.conf.arg(metavar="DIR|FILE")]
    """Folder of products' photos, or a manifest, whose references are taken."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The catalogue to write: a safetensors file, for this checkpoint's image encoder only."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")
    ] = None
    """Model folder or run folder."""
    batch_size: int = 8
    """Photos at once."""
    keep_backdrop: tyro.conf.FlagCreatePairsOff[bool] = False
    """As in sample.py: leave a photo's plain, light backdrop as it is."""


@reports_errors(InputError, ModelFolderError, ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 if some photos could not be used, 2 after an error of use."""
    program = "python -m dtc_jax.inference.catalogue"
    return 1 if run(parse_arguments(CatalogueArguments, sys.argv[1:] if argv is None else argv, program)) else 0


def run(arguments: CatalogueArguments) -> int:
    """Encode and write; returns how many photos could not be used.

    Raises:
        UsageError: numbers out of range.
        InputError: nothing to encode, or an output that cannot be written.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    if arguments.output.suffix != ".safetensors" or arguments.output.is_dir():
        raise InputError(f"output {arguments.output}: name a .safetensors file")
    _ = checkpoint_config(arguments.checkpoint).model.reference_size  # refuses a model that takes no references
    photos = _photos(arguments.references)
    enable_compilation_cache()
    pipeline = Pipeline.load(arguments.checkpoint)
    settings = sampler_settings(pipeline.config, dtype=pipeline.dtype)
    networks = {name: pipeline.params[name] for name in NETWORKS}
    metadata = {
        "fingerprint": encoder_fingerprint(pipeline.config, pipeline.params, pipeline.dtype),
        "made_by": pipeline.config.name,
    }
    failed = 0

    def framed(bar: tqdm) -> Iterator[tuple[str, UInt8[np.ndarray, "r r 3"]]]:
        nonlocal failed
        with ThreadPoolExecutor(_READERS) as readers:
            for batch in _chunks(photos, 4 * _READERS):
                read = readers.map(lambda photo: _frame(photo, pipeline.config.model, arguments.keep_backdrop), batch)
                for reference in read:
                    bar.update()
                    if isinstance(reference, InputError):
                        failed += 1
                        tqdm.write(f"error: {reference}", file=sys.stderr)
                    else:
                        yield reference_key(reference), reference

    try:
        with (
            tqdm(total=len(photos), unit="photo", disable=None) as bar,
            CatalogueWriter(arguments.output, len(photos), metadata) as writer,
        ):
            for chunk in _chunks(framed(bar), arguments.batch_size):
                new = {key: reference for key, reference in chunk if key not in writer}
                if not new:
                    continue
                filled = [*new.values(), *[chunk[0][1]] * (arguments.batch_size - len(new))]
                tokens = np.asarray(encode_reference(networks, np.stack(filled), settings))
                for key, one in zip(new, tokens, strict=False):
                    writer.add(key, one)
            if not len(writer):
                raise InputError(f"references {arguments.references}: none can be used")
            count = len(writer)
    except OSError as error:
        raise InputError(f"output {arguments.output}: cannot be written ({error.strerror or error})") from None
    print(f"{arguments.output}: tokens of {count} references")
    return failed


def _photos(references: Path) -> list[Location]:
    if references.is_dir():
        cases = each_reference(Case(id="", scene=references, reference=references))
    else:
        cases = [one for case in read_manifest(references, check_files=False) for one in each_reference(case)]
    return list(dict.fromkeys(case.reference for case in cases if case.reference is not None))


def _frame(photo: Location, model: ModelConfig, keep_backdrop: bool) -> UInt8[np.ndarray, "r r 3"] | InputError:
    try:
        reference = read_reference(photo)
    except InputError as error:
        return error
    cleaned = reference if keep_backdrop else clean_reference(reference)
    return frame_reference(cleaned, model.reference_size, model.hint.trim)


def _chunks(values: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, size)):
        yield chunk


if __name__ == "__main__":
    sys.exit(main())
