"""The command line that prepares data sets of files for training.

    python -m dtc_jax.data.build vitonhd --source zalando-hd-resized --output data --noface
    python -m dtc_jax.data.build product_pairs --source catalogue.jsonl --output data --name shoes --workers 8

A build that was cut off continues when the same command is given again; a finished data set is never overwritten.
Errors of use end with exit code 2 and one line on the standard error output.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments, printable
from dtc_jax.config_base import ConfigError
from dtc_jax.data.builders.source import NO_SOURCE
from dtc_jax.data.builders.vitonhd_source import MaskChoice
from dtc_jax.data.images import InputError
from dtc_jax.data.locations import is_remote
from dtc_jax.data.printing import show
from dtc_jax.data.records import DataSet, find_data_set, import_tfds
from dtc_jax.data.window import DEFAULT_CONTEXT

PROGRAM = "python -m dtc_jax.data.build"

_Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class _Options:
    output: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of data sets; this one becomes OUTPUT/KIND/NAME/VERSION. Made if absent."""
    name: str = "default"
    """Tells data sets of the same kind apart."""
    size: int = 512
    """Height and width at which scenes are stored: what will be trained at."""
    context: float = DEFAULT_CONTEXT
    """How much of the photo is kept round the mask, as a share of the mask's larger side; sampling's own."""
    workers: int = os.cpu_count() or 1
    """Processes that read and cut images."""
    max_broken: float = 0.01
    """Share of the cases that may be broken: left out, counted and listed. One always may, unless this is 0."""
    restart: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin anew where a build was cut off, in place of continuing: after images were changed."""


@dataclass(frozen=True, kw_only=True)
class VitonHDArguments(_Options):
    """VITON-HD, from its unpacked folder. Non-commercial research only."""

    source: _Folder
    """The folder with train_pairs.txt, test_pairs.txt, train/ and test/ (or one of the two splits)."""
    mask: MaskChoice = "auto"
    """Fine masks: the garment in the parse maps, or the agnostic masks; auto takes parse maps where there are any."""
    noface: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Cut every photo below the face, as in the paper's VITON-HD-NoFace. Needs parse maps."""


@dataclass(frozen=True, kw_only=True)
class ProductPairsArguments(_Options):
    """A catalogue of your own, from a manifest.

    One JSON object a line: id, scene, mask or box, reference, and optionally truth (the photo with the product in it,
    where scene shows none), category and split (train, validation or test).
    """

    source: Annotated[str, tyro.conf.arg(metavar="PATH|URI")]
    """The manifest, local or on a bucket (gs://, s3://: anything that fsspec opens); paths in it are relative to it."""
    beam: Annotated[str | None, tyro.conf.arg(metavar="OPTIONS", help_behavior_hint="(optional)")] = None
    """Make the records with Apache Beam, with these pipeline options: runner=FlinkRunner,flink_master=HOST:8081 ..."""


Arguments = VitonHDArguments | ProductPairsArguments

_COMMANDS: dict[str, type[Any]] = {"vitonhd": VitonHDArguments, "product_pairs": ProductPairsArguments}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    try:
        if words[0] not in _COMMANDS:
            raise UsageError(f"unknown data set {words[0]!r}: one of {', '.join(_COMMANDS)} (see {PROGRAM} --help)")
        show(build(parse_arguments(_COMMANDS[words[0]], words[1:], f"{PROGRAM} {words[0]}")).split("\n"))
    except (UsageError, InputError, ConfigError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        message = printable(f"the data set cannot be written:{place} {error.strerror or error}")
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def build(arguments: Arguments) -> str:
    """Build a data set; returns what to tell of it.

    Raises:
        InputError: the source cannot be used, or too much of it is broken.
        ConfigError: options that cannot work, a data set that is there already, or tensorflow_datasets is missing.
    """
    if is_remote(arguments.output):
        raise ConfigError(f"--output {arguments.output}: ArrayRecord files are written to local or mounted storage")
    if not re.fullmatch(r"[\w-]+", arguments.name):
        raise ConfigError(f"--name {arguments.name!r}: needs letters, digits, _ and - only, for it names a folder")
    if arguments.name == NO_SOURCE:
        raise ConfigError(f"--name {NO_SOURCE}: stands for a data set without a source; choose another name")
    tfds = import_tfds()
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)
    # disable=None: a bar on a terminal only.
    with tqdm(unit="case", disable=None) as bar:
        builder = _builder(arguments, bar)
        if Path(builder.data_dir).is_dir():
            raise ConfigError(
                f"data set {builder.data_dir}: exists already; remove it, or choose another --name or --output"
            )
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS's own words
            builder.download_and_prepare(**_pipeline(arguments))
    return summary(find_data_set(builder.data_dir), builder.log)


def _builder(arguments: Arguments, bar: Any) -> Any:
    # TFDS is imported by these modules.
    from dtc_jax.data.builders.product_pairs import ProductPairs, ProductPairsConfig
    from dtc_jax.data.builders.vitonhd import VITONHD, VitonHDConfig

    def progress(count: int, total: int) -> None:
        if bar.total != total:
            bar.reset(total)
        bar.update(count)

    common: dict[str, Any] = {
        "source": str(arguments.source),
        "name": arguments.name,
        "size": arguments.size,
        "context": arguments.context,
        "max_broken": arguments.max_broken,
        "workers": arguments.workers,
        "restart": arguments.restart,
        "progress": progress,
    }
    if isinstance(arguments, VitonHDArguments):
        config = VitonHDConfig(**common, mask=arguments.mask, noface=arguments.noface)
        config.check()
        return VITONHD(data_dir=arguments.output, config=config)
    config = ProductPairsConfig(**common, beam=arguments.beam is not None)
    config.check()
    return ProductPairs(data_dir=arguments.output, config=config)


def _pipeline(arguments: Arguments) -> dict[str, Any]:
    """What TFDS is told of the Beam pipeline, if there is one."""
    if not isinstance(arguments, ProductPairsArguments) or arguments.beam is None:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError(f"--beam needs Apache Beam ({error}); install it: pip install apache-beam") from None
    options = PipelineOptions([f"--{option}" for option in arguments.beam.split(",") if option])
    return {"download_config": import_tfds().download.DownloadConfig(beam_options=options)}


def summary(data_set: DataSet, log: Path) -> str:
    """What was built: records, what was left out and why, and the licence."""
    metadata = data_set.metadata
    counts = ", ".join(f"{split} {count:,}" for split, count in data_set.splits.items())
    lines = [f"{data_set.folder}: complete; records: {counts}"]
    if metadata["num_broken"]:
        listed = f"listed in {log}" if log.is_file() else "named in the logs of Beam's workers"
        lines.append(f"broken and left out: {metadata['num_broken']} of {metadata['cases']:,} cases, {listed}")
    lines += [f"skipped: {count} ({reason})" for reason, count in metadata["skipped"].items()]
    if "licence" in metadata:
        lines.append(f"licence: {metadata['licence']}")
    return "\n".join(lines)


def _help() -> str:
    lines = [f"usage: {PROGRAM} DATA_SET [OPTIONS]; {PROGRAM} DATA_SET --help explains each", ""]
    for name, kind in _COMMANDS.items():
        lines.append(f"  {name:14} {(kind.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
