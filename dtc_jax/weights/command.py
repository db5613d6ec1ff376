"""The command line of conversion: import, export, verify, inspect.

    convert_weights.py import --base stable-diffusion-v1-5 --output start
    convert_weights.py export --checkpoint runs/mine --output exported
    convert_weights.py verify --checkpoint runs/mine --exported exported
    convert_weights.py inspect weights.safetensors

Errors of use and unusable files end with exit code 2 and one line on the standard error output; a comparison beyond its
tolerance with exit code 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import tyro

from dtc_jax.arguments import UsageError, parse_arguments, printable
from dtc_jax.config import CLIPTextConfig, CLIPVisionConfig, ConfigError, HintConfig, ModelConfig, ReferenceConfig
from dtc_jax.weights.checkpoint_source import Checkpoint, open_checkpoint
from dtc_jax.weights.export_pytorch import export_pipeline
from dtc_jax.weights.export_pytorch.stable_diffusion import PIPELINE_CLASS, export_inpainting
from dtc_jax.weights.hub import locate
from dtc_jax.weights.initialize_model import Parts, initialize_model
from dtc_jax.weights.inspect import describe, inspect
from dtc_jax.weights.model_folder import ModelFolderError
from dtc_jax.weights.new_folder import refuse_existing
from dtc_jax.weights.prompts import TOKENIZER
from dtc_jax.weights.single_files import export_single_file
from dtc_jax.weights.sources import read_sources
from dtc_jax.weights.tensors import WeightsError
from dtc_jax.weights.verify import table, verify

PROGRAM = "convert_weights.py"

_Dtype = Literal["float32", "float16", "bfloat16"]
_Source = Annotated[str | None, tyro.conf.arg(metavar="PATH|ID", help_behavior_hint="(optional)")]
_Checkpoint = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")]
_AsStored = Annotated[
    _Dtype | None, tyro.conf.arg(metavar="float32|float16|bfloat16", help_behavior_hint="(default: as stored)")
]
_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Make a model folder, ready to train, from published weights.

    PATH|ID is a local file or folder, or OWNER/NAME on the Hugging Face hub.
    """

    base: Annotated[str, tyro.conf.arg(metavar="PATH|ID")]
    """Stable Diffusion 1.x, its inpainting model or Paint by Example (diffusers' folder or single file); or a folder
    that was exported."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """New model folder."""
    vae: _Source = None
    """Another autoencoder: AutoencoderKL, or TAESD."""
    reference_encoder: _Source = None
    """DINOv2, in Facebook's or transformers' layout; or CLIP or Paint by Example's image encoder, for Paint by Example,
    which has no hint."""
    vgg: _Source = None
    """VGG-19, in torchvision's layout."""
    hint_encoder: _Source = None
    """A ControlNet to start the hint encoder from, in place of a copy of the U-Net's encoder."""
    hed: _Source = None
    """ControlNet's HED (ControlNetHED.pth), for hints that are the edges which it finds."""
    text_encoder: _Source = None
    """For DreamPaint, in place of a reference encoder: a folder with text_encoder/ and tokenizer/, mostly the base."""
    variant: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(optional)")] = None
    """Variant of the files in folders, e.g. fp16."""
    ema: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the U-Net's moving average, of a single file that holds both."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 512)")] = None
    """Height and width of the images that the model is going to be trained on."""
    seed: int = 0
    """Seed of what is drawn afresh."""
    dtype: _AsStored = None
    """Type of the weights."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a trained model for PyTorch."""

    output: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """New folder (--format diffusers) or .safetensors file (ldm, dinov2)."""
    checkpoint: _Checkpoint = None
    """Model folder or run folder."""
    weights: Annotated[
        Literal["ema", "params"] | None, tyro.conf.arg(metavar="ema|params", help_behavior_hint="(default: ema)")
    ] = None
    """Of a run folder: the moving average, or the trained parameters themselves."""
    format: Literal["diffusers", "ldm", "dinov2"] = "diffusers"
    """diffusers: a folder with its own pipeline; ldm: U-Net and autoencoder in one file; dinov2: Facebook's layout."""
    dtype: _AsStored = None
    """Type of the weights."""
    max_shard_gb: float = 5.0
    """Files of a folder that would be larger are split, with an index."""
    with_vgg: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write the perceptual loss's network, which is needed to train on and not to sample."""
    started_from: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(optional)")] = None
    """Imported model folder that the training started from: the model card then says where the weights come from."""


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """Run a model in JAX and its export in PyTorch on the same random numbers, and compare."""

    checkpoint: _Checkpoint = None
    """Model folder or run folder."""
    exported: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: exported now, and removed)")
    ] = None
    """Folder that was exported from it."""
    weights: Annotated[
        Literal["ema", "params"] | None, tyro.conf.arg(metavar="ema|params", help_behavior_hint="(default: ema)")
    ] = None
    """Of a run folder: what was exported."""
    tolerance: float = 1e-5
    """Relative error that every network may have."""
    sample_tolerance: float = 1e-3
    """Relative error that the whole guided sample may have."""
    num_inference_steps: int = 5
    """DDIM steps of the guided sample; 0 leaves it out."""
    seed: int = 0
    """Seed of the random inputs."""


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Say what a file or folder of weights is."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH|ID")]
    """File or folder, or OWNER/NAME on the Hugging Face hub."""
    variant: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(optional)")] = None
    """Variant of the files in folders, e.g. fp16."""


class _Terminated(BaseException):
    """SIGTERM, as Ctrl-C is KeyboardInterrupt: what is half-written is removed on the way out."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 beyond a tolerance, 2 after an error of use."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Names in files may hold what a terminal's encoding does not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    try:
        if any("\0" in word for word in words):
            raise UsageError("an argument holds a NUL byte; no file has such a name")
        if words[0] not in _COMMANDS:
            raise UsageError(f"unknown command {words[0]!r}: one of {', '.join(_COMMANDS)} (see {PROGRAM} --help)")
        kind, run = _COMMANDS[words[0]]
        with _terminable():
            return run(parse_arguments(kind, words[1:], f"{PROGRAM} {words[0]}"))
    except (UsageError, WeightsError, ModelFolderError, ConfigError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a name that the file system cannot have, a file that goes away meanwhile
        print(f"error: {str(error.filename or PROGRAM)[:200]}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Terminated) as stop:
        print("interrupted", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143


def _help() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [OPTIONS]; {PROGRAM} COMMAND --help explains each", ""]
    for name, (kind, _) in _COMMANDS.items():
        lines.append(f"  {name:8} {(kind.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- commands


def run_import(arguments: ImportArguments) -> int:
    """`import`: a line per network, and how to train."""
    refuse_existing(arguments.output)
    if (arguments.image_size is not None and arguments.image_size < 1) or not 0 <= arguments.seed < 2**63:
        raise UsageError("--image-size must be positive, --seed between 0 and 2**63")

    def located(name: str | None, *folders: str) -> Path | None:
        return None if name is None else locate(name, folders or ("",), arguments.variant)

    base = located(arguments.base, "unet", "vae", "image_encoder")
    assert base is not None
    parts = Parts(
        base=base,
        vae=located(arguments.vae),
        reference_encoder=located(arguments.reference_encoder),
        vgg=located(arguments.vgg),
        hint_encoder=located(arguments.hint_encoder),
        hed=located(arguments.hed),
        text_encoder=located(arguments.text_encoder, "text_encoder", TOKENIZER),
        variant=arguments.variant,
        ema=arguments.ema,
    )
    start = initialize_model(
        parts,
        arguments.output,
        image_size=arguments.image_size,
        seed=arguments.seed,
        dtype=_dtype(arguments.dtype),
        report=lambda source: print(source, flush=True),
    )
    experiment, usual = experiment_of(start.config.model)
    flags = "".join(f" {flag}" for flag in other_than_default(start.config.model, usual))
    photos = " --data.product PHOTOS" if start.config.model.prompted else ""
    command = f"python train.py {experiment} --run-dir RUN --init-from {arguments.output}{photos}{flags}"
    print(f"{arguments.output}: complete; {command}")
    return 0


def experiment_of(model: ModelConfig) -> tuple[str, ModelConfig]:
    """The experiment that trains a model of this kind, and its sizes."""
    if model.prompted:
        reference, hint = ReferenceConfig(projection="none"), HintConfig(kind="none")
        return "dreampaint", ModelConfig(reference_encoder=CLIPTextConfig(), reference=reference, hint=hint)
    if isinstance(model.reference_encoder, CLIPVisionConfig):
        reference = ReferenceConfig(tokens="cls", projection="mapper")
        hint = HintConfig(kind="none")
        return "pbe_clip_cls", ModelConfig(reference_encoder=CLIPVisionConfig(), reference=reference, hint=hint)
    if model.hint.kind == "hed":
        return "sd15_hed", ModelConfig(hint=HintConfig(kind="hed"))
    return "sd15", ModelConfig()


def other_than_default(model: ModelConfig, usual: ModelConfig | None = None) -> list[str]:
    """Flags of train.py with which an experiment of the `usual` sizes (by default `sd15`) gets these."""

    def differing(found: Mapping[str, Any], usual: Mapping[str, Any], prefix: str) -> list[str]:
        flags: list[str] = []
        for name, value in found.items():
            flag = f"{prefix}.{name.replace('_', '-')}"
            if isinstance(value, Mapping):
                flags += differing(value, usual.get(name, {}), flag)
            elif name not in usual or value != usual[name]:
                words = value if isinstance(value, tuple) else (value,)
                flags.append(f"{flag} {' '.join(map(str, words))}")
        return flags

    return differing(dataclasses.asdict(model), dataclasses.asdict(usual or ModelConfig()), "--model")


def run_export(arguments: ExportArguments) -> int:
    """`export`."""
    refuse_existing(arguments.output)
    if not arguments.max_shard_gb > 0:
        raise UsageError(f"--max-shard-gb must be positive, not {arguments.max_shard_gb}")
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.weights)
    dtype = _dtype(arguments.dtype)
    if arguments.format != "diffusers":
        if arguments.with_vgg:
            raise UsageError("--with-vgg goes with --format diffusers")
        lines = export_single_file(checkpoint, arguments.output, arguments.format, dtype)
        print("\n".join([*lines, f"{arguments.output}: complete"]))
        return 0
    sources = read_sources(arguments.started_from) if arguments.started_from is not None else []
    if arguments.started_from is not None and not sources:
        raise WeightsError(f"{arguments.started_from}: no imported model folder (it holds no sources.json)")
    shard_bytes = int(min(arguments.max_shard_gb * 1e9, 2.0**62))  # inf: one file
    if checkpoint.config.model.prompted:
        export_inpainting(checkpoint, arguments.output, dtype=dtype, max_shard_bytes=shard_bytes, sources=sources)
        print(f"{arguments.output}: complete; {PIPELINE_CLASS}.from_pretrained({str(arguments.output)!r})")
        return 0
    export_pipeline(
        checkpoint,
        arguments.output,
        dtype=dtype,
        max_shard_bytes=shard_bytes,
        with_vgg=arguments.with_vgg,
        sources=sources,
    )
    call = f"DiffusionPipeline.from_pretrained({str(arguments.output)!r}, trust_remote_code=True)"
    print(f"{arguments.output}: complete; {call}")
    return 0


def run_verify(arguments: VerifyArguments) -> int:
    """`verify`: the table; 1 if a row is beyond its tolerance."""
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.weights)
    if checkpoint.config.model.prompted:
        raise WeightsError(
            f"{checkpoint.path}: is exported for diffusers' own {PIPELINE_CLASS}; "
            "verify compares with our pipeline's code"
        )
    if arguments.exported is not None and not arguments.exported.is_dir():
        raise WeightsError(f"{arguments.exported}: no such folder; leave --exported out to export now")
    if arguments.num_inference_steps < 0 or arguments.seed < 0:
        raise UsageError("--num-inference-steps and --seed must not be negative")
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = arguments.exported or _exported(checkpoint, Path(temporary) / "exported")
        rows = verify(
            checkpoint,
            exported,
            tolerance=arguments.tolerance,
            sample_tolerance=arguments.sample_tolerance,
            num_inference_steps=max(arguments.num_inference_steps, 1),
            seed=arguments.seed,
            with_sample=arguments.num_inference_steps > 0,
        )
    print(table(rows))
    return 0 if all(row.passed for row in rows) else 1


def _exported(checkpoint: Checkpoint, folder: Path) -> Path:
    return export_pipeline(checkpoint, folder)


def run_inspect(arguments: InspectArguments) -> int:
    """`inspect`."""
    path = locate(arguments.path, ("", "unet", "vae"), arguments.variant)
    print(describe(inspect(path, arguments.variant)))
    return 0


def _dtype(name: str | None) -> Any:
    return None if name is None else _DTYPES[name]


_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "import": (ImportArguments, run_import),
    "export": (ExportArguments, run_export),
    "verify": (VerifyArguments, run_verify),
    "inspect": (InspectArguments, run_inspect),
}
