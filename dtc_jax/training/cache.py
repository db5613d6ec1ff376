"""`python -m dtc_jax.training.cache NAME --output CACHE --data.path DATA`: frozen networks run once, not in every step.

    python -m dtc_jax.training.cache sd15 --data.path data/shop --init-from weights/start --output data/shop_cached
    python train.py sd15 --data.kind records --data.path data/shop_cached --data.cached tokens latents ...

Work that was cut off goes on when the same command is given again. Errors of use end with exit code 2 and one line.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.shards import check_unfinished
from dtc_jax.training.broken_records import BrokenLog
from dtc_jax.training.cached_networks import check_frozen, load_networks
from dtc_jax.training.caching import VERSION, CachePlan, make_cache, plan_cache
from dtc_jax.training.command import find_configs, read_config, use_cpu_cores
from dtc_jax.training.sharding import check_batch, make_mesh, readable_bytes
from dtc_jax.weights.model_folder import ModelFolderError

PROGRAM = "python -m dtc_jax.training.cache"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the command takes beside the name of the experiment."""

    output: Path
    """Folder of the cache, which is a prepared data set; made if absent."""
    init_from: tuple[Path, ...] = ()
    """Model or run folders that hold the networks whose outputs are cached; those that training will start from."""
    variants: int = 1
    """Epochs of samples, each with its own augmentation; training goes through them in turn."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type in which the outputs are stored. Float16 is eight times as fine as bfloat16; float32 is what the networks
    computed."""
    part: tuple[int, int] = (0, 1)
    """I N: write every N-th file from the I-th on. Several machines with the same --output each write their part; who
    comes last finishes."""
    estimate: bool = False
    """Say how large the cache will be, and end."""
    cpu_devices: int | None = None
    """Virtual devices where the networks run on CPUs; see train.py."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    """The experiment that will be trained, field by field. `data.cached` says what is cached (by default all)."""


def main(argv: Sequence[str]) -> int:
    """Make the cache that the command line names; returns the exit code (2 for errors of use, each one line)."""
    configs = find_configs(CONFIGS)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(configs))
        return 0 if argv else 2
    name = argv[0]
    if name not in configs:
        print(f"cache: no experiment {name!r}; there are: {', '.join(configs)}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("dtc_jax").setLevel(logging.INFO)
    try:
        default = Arguments(output=tyro.MISSING, config=read_config(configs[name])[0])
        run(parse_arguments(Arguments, argv[1:], f"{PROGRAM} {name}", default))
    except (UsageError, ConfigError, ModelFolderError, OSError) as error:
        print(f"cache: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cache: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def usage(configs: dict[str, Path]) -> str:
    """What --help prints."""
    lines = [f"usage: {PROGRAM} NAME --output CACHE --data.path DATA [--init-from DIR ...] [--FIELD VALUE ...]", ""]
    lines += ["experiments:", *(f"  {name:18} {read_config(path)[1]}" for name, path in configs.items())]
    return "\n".join([*lines, "", f"{PROGRAM} NAME --help explains every flag."])


def check_output(output: Path) -> None:
    """Refuse a folder that a cache cannot be written to, before the networks are loaded.

    Raises:
        ConfigError: it is a data set itself, or holds a finished cache.
    """
    if (output / "dataset_info.json").exists():
        raise ConfigError(f"--output {output}: is a data set; name a folder beside it")
    check_unfinished(output / VERSION)


def run(arguments: Arguments) -> None:
    """Carry out the command.

    Raises:
        ConfigError: what cannot work.
        ModelFolderError: a folder of `--init-from` cannot be read, or does not fit.
        OSError: the cache cannot be written.
    """
    config = to_cache(arguments.config)
    part, parts = arguments.part
    if not 0 <= part < parts:
        raise ConfigError(f"--part {part} {parts}: must be I N with 0 <= I < N")
    use_cpu_cores(arguments.cpu_devices, config.training.batch_size)
    check_frozen(config)
    check_output(arguments.output)
    plan = plan_cache(config, arguments.variants, arguments.dtype)
    print(size_of(plan), flush=True)
    if arguments.estimate:
        return
    check_space(plan, arguments.output, parts)
    mesh = make_mesh(config.training.fsdp_devices, None, config.training.slices)
    check_batch(config.training, mesh)
    # The keys of training: without folders, its random networks are these.
    key = jax.random.fold_in(jax.random.key(config.training.seed), 0)
    params = load_networks(config, key, arguments.init_from)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tqdm(unit="sample", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        folder = make_cache(
            plan,
            params,
            arguments.output,
            mesh,
            part=arguments.part,
            progress=progress,
            on_broken=BrokenLog(arguments.output),
        )
    if folder is None:
        print(f"{arguments.output}: part {part} of {parts} is done; others are missing")
    else:
        cached = " ".join(config.data.cached)
        print(
            f"{folder}: complete; train with --data.kind records --data.path {arguments.output} --data.cached {cached}"
        )


def to_cache(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with all that is meant but need not be said.

    Raises:
        ConfigError: there is nothing that could be cached.
    """
    if config.stage != "diffusion":
        raise ConfigError(f"{config.name}: its stage {config.stage} reads no outputs of frozen networks")
    if config.data.path is None:
        raise ConfigError("--data.path: not given; it names the prepared data set whose samples are cached")
    kinds = config.data.cached or ("tokens", "latents")
    # In one order, without doubles, whatever was typed.
    cached = tuple(kind for kind in ("tokens", "latents") if kind in kinds)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, kind="records", cached=cached))


def size_of(plan: CachePlan) -> str:
    """How large the cache will be, in one line."""
    records = " + ".join(
        f"{reader.count:,} {split} records"
        + (f" x {plan.variants[split]} variants" if plan.variants[split] > 1 else "")
        for split, reader in plan.readers.items()
    )
    each = f"{readable_bytes(plan.array_bytes)} of {plan.dtype} and {readable_bytes(plan.image_bytes)} of images"
    return f"{records}: {sum(plan.counts.values()):,} samples of {each}, {readable_bytes(plan.total_bytes)} in all"


def check_space(plan: CachePlan, output: Path, parts: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ConfigError: says what is missing.
    """
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
    written = sum(path.stat().st_size for path in output.glob("incomplete.*/*")) if output.is_dir() else 0
    needed, free = plan.total_bytes // parts - written, shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(
            f"{output}: has {readable_bytes(free)} of space, the cache needs {readable_bytes(needed)}; "
            "take fewer --variants, another --output or, of float32, a smaller --dtype"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
