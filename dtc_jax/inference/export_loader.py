"""Loads the sampler in this folder. Needs jax, flatbuffers, numpy and safetensors, and not the code that made it.

from load import load
sampler = load("FOLDER", batch_size=1)
images = sampler(batch, seeds=[0])    # float32 [1, size, size, 3] in [0, 1]
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file


def load(folder: str | Path = Path(__file__).parent, batch_size: int | None = None) -> Callable[..., jax.Array]:
    """A function of a batch, its seeds and the guidance scale, compiled at its first call; see signature.json."""
    folder = Path(folder)
    signature = json.loads((folder / "signature.json").read_text())
    artefacts = signature["artefacts"]
    size = int(batch_size or min(artefacts, key=int))
    if str(size) not in artefacts:
        raise ValueError(f"batch_size {size}: {folder} has {', '.join(artefacts)}")
    exported = jax.export.deserialize(bytearray((folder / artefacts[str(size)]).read_bytes()))
    files = sorted((folder / "weights").glob("*.safetensors"))
    weights = {name: jax.device_put(x) for path in files for name, x in load_file(path).items()}
    call = jax.jit(exported.call)

    def sampler(
        batch: Mapping[str, np.ndarray],
        seeds: Sequence[int] | np.ndarray,
        image_indices: Sequence[int] | np.ndarray | None = None,
        guidance_scale: float = signature["guidance_scale"],
    ) -> jax.Array:
        """Images; `image_indices` tell several images of one seed apart (default: 0)."""
        indices = np.zeros(size, np.uint32) if image_indices is None else np.asarray(image_indices, np.uint32)
        inputs = {name: batch[name] for name in signature["inputs"]["batch"]}
        return call(weights, inputs, np.asarray(seeds, np.uint32), indices, np.float32(guidance_scale))

    return sampler
