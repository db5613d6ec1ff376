"""The compiled sampler as files, for serving without this package.

    python -m dtc_jax.inference.export --checkpoint runs/tiny --output served --batch-size 1 4

Writes one `jax.export` artefact for every batch size (StableHLO, for several platforms), the weights as safetensors,
what goes in and comes out as signature.json, and a loader. Errors of use: exit code 2 and one line.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, UInt8, UInt32
from safetensors.numpy import save_file
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError, ModelConfig
from dtc_jax.data.images import InputError
from dtc_jax.inference import export_loader
from dtc_jax.inference.generate import generate
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import (
    CHECKPOINTS_OWN,
    SamplerSettings,
    SamplingChoices,
    resolve_sampling,
    sampler_settings,
)
from dtc_jax.weights import ModelFolderError
from dtc_jax.weights.model_folder import flatten_params, unflatten_params
from dtc_jax.weights.new_folder import new_folder, refuse_existing
from dtc_jax.weights.run_folder import checkpoint_config
from dtc_jax.weights.tensors import WeightsError

Platform = Literal["cpu", "cuda", "tpu"]
Sampler = Callable[..., Float[Array, "b h w 3"]]

_README = """# Diffuse to Choose, exported for serving

The sampler of the checkpoint "{name}" as compiled functions: {steps} steps of {solver}, {size} x {size} pixels, batch
sizes {batch_sizes}, platforms {platforms}. Needs jax {jax} or newer (JAX keeps such files readable for six months of
its releases), flatbuffers, numpy and safetensors:

```python
from load import load

sampler = load("FOLDER", batch_size={first})
images = sampler(batch, seeds={seeds}, guidance_scale={scale})  # float32 [{first}, {size}, {size}, 3] in [0, 1]
```

`batch` is a dict of uint8 arrays: {arrays}; in `mask`, 1 is where the product goes. How photos of any size become
that, and the images photos again, is `read_case` of `dtc_jax.inference.prepare` (with `box_outline="{outline}"`) and
`put_back` of what it returns. One uint32 seed for each image; images of one seed are told apart by `image_indices`, and
image i of a seed is the one that the package's own command paints.
signature.json has all of it for programs.
"""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Export the sampler of a checkpoint, for serving with JAX alone."""

    output: Path
    """Folder to make."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")
    ] = None
    """Model folder or run folder."""
    batch_size: tuple[int, ...] = (1,)
    """Batch sizes, one artefact for each."""
    platforms: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
    """What every artefact runs on."""
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        tyro.conf.arg(
            metavar="{float32,bfloat16}", help_behavior_hint="(default: the checkpoint's; float32 if cpu is a platform)"
        ),
    ] = None
    """Type of the networks' arithmetic."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingChoices] = CHECKPOINTS_OWN


def served_sampler(settings: SamplerSettings) -> Sampler:
    """`generate` as a function of arrays alone: flat weights by name, and seeds in place of keys."""

    def sampler(
        weights: Mapping[str, Array],
        batch: Mapping[str, UInt8[Array, "b _ _ _"]],
        seeds: UInt32[Array, " b"],
        image_indices: UInt32[Array, " b"],
        guidance_scale: Float[Array, ""],
    ) -> Float[Array, "b h w 3"]:
        keys = jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(seeds, image_indices)
        return generate(unflatten_params(weights), batch, keys, guidance_scale, settings)

    return sampler


def batch_shapes(model: ModelConfig, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the uint8 arrays of a batch."""
    size = model.image_size
    sides = {"scene": (size, 3), "mask": (size, 1)}
    if not model.prompted:
        sides |= {"hint": (size, 3), "reference": (model.reference_size, 3)}
    return {name: (batch_size, side, side, channels) for name, (side, channels) in sides.items()}


def export_sampler(
    settings: SamplerSettings, weights: Mapping[str, Array], batch_size: int, platforms: Sequence[str]
) -> bytes:
    """One artefact: the sampler for a batch size, lowered for every platform, weights being arguments.

    Args:
        settings: What is compiled.
        weights: Flat, by name; their shapes and dtypes are read only.
        batch_size: b.
        platforms: Of "cpu", "cuda" and "tpu".
    """
    abstract = jax.ShapeDtypeStruct
    arguments = (
        {name: abstract(value.shape, value.dtype) for name, value in weights.items()},
        {name: abstract(shape, jnp.uint8) for name, shape in batch_shapes(settings.model, batch_size).items()},
        abstract((batch_size,), jnp.uint32),
        abstract((batch_size,), jnp.uint32),
        abstract((), jnp.float32),
    )
    exported = jax.export.export(jax.jit(served_sampler(settings)), platforms=platforms)(*arguments)
    return bytes(exported.serialize())


def write_export(arguments: ExportArguments) -> None:
    """Write the folder, beside it first and then renamed.

    Raises:
        UsageError, InputError: arguments that cannot be used.
        WeightsError: the folder exists or cannot be written.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    sizes, platforms = sorted(set(arguments.batch_size)), list(dict.fromkeys(arguments.platforms))
    if not sizes or sizes[0] < 1:
        raise UsageError("--batch-size: needs whole numbers of at least 1")
    if not platforms:
        raise UsageError("--platforms: needs at least one of cpu, cuda, tpu")
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UsageError("this needs flatbuffers (pip install 'dtc-jax[serving]')") from None
    refuse_existing(arguments.output)
    config = checkpoint_config(arguments.checkpoint)
    sampling = resolve_sampling(config, arguments.sampling)
    dtype = arguments.dtype or ("float32" if "cpu" in platforms else config.training.compute_dtype)
    settings = sampler_settings(config, arguments.sampling, jnp.dtype(dtype))
    pipeline = Pipeline.load(arguments.checkpoint, settings.dtype)
    weights = flatten_params(pipeline.params)
    artefacts = {str(size): f"sampler-batch{size}.jaxexport" for size in sizes}
    signature = {
        "format": "jax.export",
        "jax": jax.__version__,
        "experiment": config.name,
        "platforms": platforms,
        "artefacts": artefacts,
        "arguments": ["weights", "batch", "seeds", "image_indices", "guidance_scale"],
        "inputs": {
            "weights": "every tensor of weights/*.safetensors, by its name",
            "batch": {
                name: {"dtype": "uint8", "shape": ["b", *shape[1:]]}
                for name, shape in batch_shapes(config.model, 1).items()
            },
            "seeds": {"dtype": "uint32", "shape": ["b"]},
            "image_indices": {"dtype": "uint32", "shape": ["b"]},
            "guidance_scale": {"dtype": "float32", "shape": []},
        },
        "output": {
            "dtype": "float32",
            "shape": ["b", config.model.image_size, config.model.image_size, 3],
            "range": [0, 1],
        },
        "dtype": dtype,
        "guidance_scale": sampling.guidance_scale,
        "sampling": {name: value for name, value in dataclasses.asdict(sampling).items() if name != "guidance_scale"},
    }
    with new_folder(arguments.output) as folder:
        for size in tqdm(sizes, unit="artefact", disable=None):
            (folder / artefacts[str(size)]).write_bytes(export_sampler(settings, weights, size, platforms))
        (folder / "weights").mkdir()
        for network, params in pipeline.params.items():
            tensors = {name: np.asarray(value) for name, value in flatten_params({network: params}).items()}
            save_file(tensors, folder / "weights" / f"{network}.safetensors")
        (folder / "signature.json").write_text(json.dumps(signature, indent=2) + "\n")
        (folder / "README.md").write_text(
            _README.format(
                name=config.name,
                steps=sampling.num_inference_steps,
                solver=sampling.solver,
                outline=sampling.box_outline,
                size=config.model.image_size,
                arrays=", ".join(
                    f"`{name}` [{', '.join(['b', *map(str, shape[1:])])}]"
                    for name, shape in batch_shapes(config.model, 1).items()
                ),
                batch_sizes=", ".join(artefacts),
                platforms=", ".join(platforms),
                jax=jax.__version__,
                first=sizes[0],
                seeds=list(range(sizes[0])),
                scale=sampling.guidance_scale,
            )
        )
        shutil.copyfile(export_loader.__file__, folder / "load.py")


@reports_errors(InputError, ModelFolderError, ConfigError, WeightsError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    arguments: Any = parse_arguments(
        ExportArguments, sys.argv[1:] if argv is None else argv, "python -m dtc_jax.inference.export"
    )
    write_export(arguments)
    print(f"{arguments.output}: batch sizes {', '.join(map(str, sorted(set(arguments.batch_size))))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
