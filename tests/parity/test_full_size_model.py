"""The whole model at its published size: import, both exports, the way back, sampling; and how much memory each takes.

    make test-full

Files of random values in the published names and shapes take the place of Stable Diffusion 1.5, DINOv2 ViT-g/14 and
VGG-19. Every command runs in a process of its own. 20 GiB of memory and 35 GB of disk are needed. `-m slow -k small`
runs the same tests with networks of the smallest size, in a minute.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dtc_jax import presets
from dtc_jax.config import ModelConfig
from dtc_jax.weights import autoencoder_kl, dinov2, unet, vgg
from dtc_jax.weights.layouts import Layout, torch_shapes
from dtc_jax.weights.tensors import LazyTensor, SafetensorsFile, Shape, open_tensors, write_tensors
from dtc_jax.weights.unet_config import to_diffusers_config
from tests.parity.alone import sample_alone

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONVERSION_GIB = 4.0
"""What import and export may take, whatever the model's size."""

SAMPLING_GIB = 20.0
STEPS = 2
"""Of the solver: memory does not depend on it."""


@dataclass(frozen=True)
class Scale:
    """A size of the model.

    Attributes:
        model: Sizes of the networks that are published.
        parameters: Of the U-Net as it is imported, with 9 input channels.
    """

    model: ModelConfig
    parameters: int


def full() -> Scale:
    model = presets.sd15()
    reference = replace(model.reference_encoder, position_image_size=518)
    return Scale(replace(model, reference_encoder=reference), 859_535_364)


def small() -> Scale:
    return Scale(presets.test(), 51_724)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(small, id="small"),
        pytest.param(full, id="full", marks=pytest.mark.timeout(7200)),
    ],
)
def scale(request: pytest.FixtureRequest) -> Scale:
    return request.param()


# ------------------------------------------------------------------------------------------- what stands for published


def random_values(name: str, shape: Shape, seed: int) -> np.ndarray:
    """Values with which signals neither vanish nor explode, drawn when they are written."""
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * noise
    if name.endswith("weight"):
        return noise / np.float32(math.sqrt(math.prod(shape[1:])))
    return (0.1 if name.endswith("bias") else 0.5) * noise


def write_published(folder: Path, name: str, layout: Layout, shapes: Mapping[str, Shape]) -> None:
    """A file of random values, one tensor in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [
        LazyTensor(key, shape, np.dtype(np.float32), partial(random_values, key, shape, seed))
        for seed, (key, shape) in enumerate(torch_shapes(layout, shapes).items())
    ]
    write_tensors(folder, name, tensors)


def write_config(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def write_parts(folder: Path, model: ModelConfig) -> list[str]:
    """Stable Diffusion, DINOv2 and VGG as they are published; returns the flags of `import` that name them."""
    published = replace(model.unet, in_channels=model.vae.latent_channels)
    name = "diffusion_pytorch_model"
    write_published(folder / "sd" / "unet", name, unet.DIFFUSERS, unet.shapes(published))
    write_config(folder / "sd" / "unet", _class_name="UNet2DConditionModel", **to_diffusers_config(published))
    write_published(folder / "sd" / "vae", name, autoencoder_kl.DIFFUSERS, autoencoder_kl.shapes(model.vae))
    write_config(folder / "sd" / "vae", _class_name="AutoencoderKL", **autoencoder_kl.to_diffusers_config(model.vae))
    (folder / "sd" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    write_published(folder / "dinov2", "model", dinov2.TRANSFORMERS, dinov2.shapes(model.reference_encoder))
    reference = dinov2.to_transformers_config(model.reference_encoder)
    write_config(folder / "dinov2", model_type="dinov2", **reference)
    write_published(folder, "vgg19", vgg.TORCHVISION, vgg.shapes(model.vgg))
    return [
        *("--base", str(folder / "sd")),
        *("--reference-encoder", str(folder / "dinov2")),
        *("--vgg", str(folder / "vgg19.safetensors")),
        *("--image-size", str(model.image_size)),
    ]


def train_the_fresh_parts(folder: Path) -> None:
    """Random values in place of the zeros that an import begins with, so that the hint has an effect."""
    for name in ("fusion", "hint_adapter"):
        file = folder / f"{name}.safetensors"
        random = np.random.default_rng(len(name))
        tensors = {
            key: (0.1 * random.standard_normal(leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]) or 1))
            for key, leaf in load_file(file).items()
        }
        save_file({key: leaf.astype(np.float32) for key, leaf in tensors.items()}, file)


# -------------------------------------------------------------------------------------------------------- measurement

# Not ru_maxrss where it can be helped: Linux counts what the parent had when it started the process.
_MEASURED = """
import importlib, resource, sys
code = importlib.import_module(sys.argv[1]).main(sys.argv[2:])
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
print(f"peak {peak} KiB")
sys.exit(code)
"""


def measured(what: str, module: str, *arguments: str | Path) -> float:
    """Run a command in a process of its own.

    Args:
        what: For the printed line.
        module: Has the command's `main`.
        arguments: The command line.

    Returns:
        The process's largest resident memory in GiB.

    Raises:
        AssertionError: the command failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _MEASURED, module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    # The table of `verify` says what failed.
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    *output, last = result.stdout.splitlines()
    peak = int(last.split()[1]) / 2**20
    print("\n" + "\n".join([*output, f"{what}: peak memory {peak:.2f} GiB"]), flush=True)
    return peak


CONVERT, SAMPLE = "dtc_jax.weights.command", "dtc_jax.inference.command"


@dataclass(frozen=True)
class Folders:
    """The model folder that was imported, and its export; what each took, in GiB."""

    start: Path
    exported: Path
    import_peak: float
    export_peak: float


@pytest.fixture(scope="module")
def folders(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    folder = tmp_path_factory.mktemp("model")
    flags = write_parts(folder / "published", scale.model)
    start, exported = folder / "start", folder / "exported"
    import_peak = measured("import", CONVERT, "import", *flags, "--output", start)
    shutil.rmtree(folder / "published")
    train_the_fresh_parts(start)
    flags = ["--checkpoint", str(start), "--started-from", str(start), "--with-vgg"]
    export_peak = measured("export", CONVERT, "export", *flags, "--output", exported)
    yield Folders(start, exported, import_peak, export_peak)
    shutil.rmtree(folder)  # pytest keeps the folders of the last runs, and these are large


# -------------------------------------------------------------------------------------------------------------- tests


def test_conversion_takes_little_memory(folders: Folders, scale: Scale) -> None:
    stored = SafetensorsFile(folders.start / "unet.safetensors")
    assert sum(math.prod(stored.shape(name)) for name in stored.keys()) == scale.parameters  # noqa: SIM118
    assert folders.import_peak < CONVERSION_GIB and folders.export_peak < CONVERSION_GIB


def test_way_back_is_exact(folders: Folders, tmp_path: Path) -> None:
    again = tmp_path / "again"
    try:
        assert measured("way back", CONVERT, "import", "--base", folders.exported, "--output", again) < CONVERSION_GIB
        assert (again / "config.json").read_text() == (folders.start / "config.json").read_text()
        files = sorted(file.name for file in folders.start.glob("*.safetensors"))
        assert len(files) == 9 and files == sorted(file.name for file in again.glob("*.safetensors"))
        for file in files:
            before, after = SafetensorsFile(folders.start / file), SafetensorsFile(again / file)
            assert sorted(before.keys()) == sorted(after.keys())
            for name in before.keys():  # noqa: SIM118
                assert before.dtype(name) == after.dtype(name)
                assert before.read(name).tobytes() == after.read(name).tobytes(), f"{file}: {name}"
    finally:
        shutil.rmtree(again, ignore_errors=True)


def test_single_file_opens_in_diffusers(folders: Folders, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    try:
        single = ("export", "--checkpoint", folders.start, "--format", "ldm", "--output", file)
        assert measured("single file", CONVERT, *single) < CONVERSION_GIB
        for name, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
            # The configuration has to be named: diffusers would download the published one.
            module = getattr(diffusers, kind).from_single_file(
                str(file), config=str(folders.exported), subfolder=name, local_files_only=True
            )
            wanted, state = open_tensors(folders.exported / name), module.state_dict()
            assert sorted(state) == sorted(wanted.keys())
            for tensor, values in state.items():
                np.testing.assert_array_equal(values.numpy(), wanted.read(tensor), err_msg=tensor)
    finally:
        file.unlink(missing_ok=True)


def test_every_network_and_a_guided_sample_agree(folders: Folders) -> None:
    """Every network within 1e-5 and five guided steps within 1e-3, or `verify` fails."""
    measured("verify", CONVERT, "verify", "--checkpoint", folders.start, "--exported", folders.exported)


def case_files(real_inputs: Path) -> dict[str, Path]:
    return {name: real_inputs / "furniture-02" / f"{name}.png" for name in ("scene", "mask", "reference")}


def assert_painted(image: np.ndarray, files: Mapping[str, Path]) -> None:
    """Of the scene's size, equal to it outside the mask, and not one colour inside."""
    scene = np.asarray(Image.open(files["scene"]).convert("RGB"))
    mask = np.asarray(Image.open(files["mask"]).convert("L")) >= 128
    assert image.shape == scene.shape
    assert (image[~mask] == scene[~mask]).all() and np.std(image[mask].astype(float)) > 1


def test_sampling_takes_no_more_than_a_workstation_has(folders: Folders, real_inputs: Path, tmp_path: Path) -> None:
    files, output = case_files(real_inputs), tmp_path / "out.png"
    flags = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    flags += ["--checkpoint", str(folders.start), "--num-inference-steps", str(STEPS), "--output", str(output)]
    assert measured("sampling", SAMPLE, *flags) < SAMPLING_GIB
    assert_painted(np.asarray(Image.open(output).convert("RGB")), files)


def test_export_samples_without_us(folders: Folders, real_inputs: Path, tmp_path: Path) -> None:
    files = case_files(real_inputs)
    sample_alone(folders.exported, tmp_path / "out.npz", list(files.values()), steps=STEPS, timeout=3600)
    with np.load(tmp_path / "out.npz") as results:
        assert_painted(results["seeded"], files)
