"""Images in, images out: a loaded model that paints products into photos of any size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, UInt8

from dtc_jax.config import BoxOutline, ExperimentConfig, ModelConfig
from dtc_jax.data.images import ImageLike, InputError
from dtc_jax.data.regions import Regions
from dtc_jax.data.window import DEFAULT_CONTEXT
from dtc_jax.diffusion import SolverName, TimestepSpacing
from dtc_jax.inference.batches import choose_batch, generate_on, replicate
from dtc_jax.inference.checks import check_count, check_feather, check_seed
from dtc_jax.inference.generate import generate_jit, image_keys
from dtc_jax.inference.prepare import Prepared, PreparedPhoto, read_case
from dtc_jax.inference.reference_tokens import Catalogue, with_tokens
from dtc_jax.inference.runtime import release_freed_memory
from dtc_jax.inference.settings import CHECKPOINTS_OWN, SamplingChoices, resolve_sampling, sampler_settings
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.model_folder import check_params
from dtc_jax.weights.run_folder import load_checkpoint

_Wanted = tuple[Prepared, int, int]


def _not_sampled(model: ModelConfig) -> tuple[str, ...]:
    """Networks that training needs and sampling does not."""
    return ("vgg", "reference_encoder") if model.prompted else ("vgg",)


def _move_to_device(params: dict[str, Any]) -> None:
    """Put every array of a nested dict onto the device, in its place, so that the host keeps no second copy of all."""
    for name, value in params.items():
        if isinstance(value, dict):
            _move_to_device(value)
        else:
            params[name] = jax.block_until_ready(jax.device_put(value))


def _rows(wanted: Sequence[_Wanted], devices: int) -> list[Prepared]:
    """The cases of a batch: one for each device where each has the images of one case, otherwise one for each image.

    Of a case that has several images the hint and all else before the loop are computed once. More ways to share than
    these two would be as many programs to compile.
    """
    share = len(wanted) // devices
    first = [case for case, _, _ in wanted[::share]]
    alone = all(case is first[number // share] for number, (case, _, _) in enumerate(wanted))
    return first if alone else [case for case, _, _ in wanted]


@dataclass(frozen=True)
class Pipeline:
    """A model and the way from pictures to pictures.

        pipeline = Pipeline.load()
        image = pipeline("room.jpg", "mask.png", "chair.jpg", seed=1)[0]

    Attributes:
        config: the checkpoint's; its sampling section gives the defaults.
        params: every network but `vgg`, and of a model with a prompt the text encoder, on the device.
        dtype: type of the networks' arithmetic.
        catalogue: references whose tokens are computed already; see `with_catalogue`.
    """

    config: ExperimentConfig
    params: Mapping[str, Any]
    dtype: DTypeLike = jnp.float32
    catalogue: Catalogue | None = None

    @classmethod
    def load(cls, checkpoint: str | os.PathLike[str] | None = None, dtype: DTypeLike | None = None) -> Pipeline:
        """Load a model folder, a run folder, or (None) the model that comes with the package.

        Args:
            checkpoint: see `load_checkpoint`.
            dtype: type of the arithmetic; None takes the configuration's on accelerators and float32 on CPUs, which
                have no fast bfloat16.

        Raises:
            ModelFolderError: not a model, or tensors that do not fit its configuration.
        """
        config, params = load_checkpoint(checkpoint, dtype=np.float32)
        for name in _not_sampled(config.model):
            params.pop(name, None)
        _move_to_device(params)
        return cls.from_params(config, params, dtype, where=str(checkpoint or "the shipped model"))

    @classmethod
    def from_params(
        cls,
        config: ExperimentConfig,
        params: Mapping[str, Any],
        dtype: DTypeLike | None = None,
        where: str = "parameters",
    ) -> Pipeline:
        """A pipeline from parameters in memory; see `load`."""
        left_out = _not_sampled(config.model)
        params = {name: network for name, network in params.items() if name not in left_out}
        expected = DiffuseToChoose(config.model).shapes()
        check_params(params, {name: network for name, network in expected.items() if name not in left_out}, where)
        if dtype is None:
            dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(config.training.compute_dtype)
        return cls(config, jax.device_put(params), dtype)

    def with_catalogue(self, path: str | os.PathLike[str]) -> Pipeline:
        """This pipeline with the tokens of a catalogue (`python -m dtc_jax.inference.catalogue`) in place of the image
        encoder's, for the references that it holds; the images are the same.

        Raises:
            InputError: no catalogue, or one of other networks; or a model that takes no references.
        """
        if self.config.model.prompted:
            raise InputError(f"catalogue {path}: this checkpoint paints one product and takes no references")
        return replace(self, catalogue=Catalogue.open(path, self.config, self.params, self.dtype))

    def __call__(
        self,
        scene: ImageLike,
        mask: ImageLike | None,
        reference: ImageLike | None = None,
        *,
        box: Sequence[int] | None = None,
        seed: int = 0,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        unconditional: Literal["tokens", "both"] | None = None,
        solver: SolverName | None = None,
        eta: float | None = None,
        timestep_spacing: TimestepSpacing | None = None,
        box_outline: BoxOutline | None = None,
        context: float = DEFAULT_CONTEXT,
        keep_backdrop: bool = False,
        feather: int | None = None,
        regions: Regions = "each",
        batch_size: int | None = None,
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Paint the reference's product into the masked region of the scene.

        Args:
            scene: path, Pillow image or uint8 array; any size.
            mask: of the scene's displayed size, white (>= 128) = fill; None with `box`.
            reference: photo of the product, best on white or transparent; None for a model that is tuned on one
                product (DreamPaint), whose prompt it has in itself.
            box: x0, y0, x1, y1 in pixels of the scene, in place of a mask.
            seed: image i of a seed is always the same, however many are made.
            num_images: how many different results.
            num_inference_steps: solver steps; None (here and below) takes the checkpoint's.
            guidance_scale: how much the reference counts; 1 turns guidance off, which is twice as fast.
            guidance_rescale: from 0 (off) to 1; see `rescale_guidance`.
            guidance_interval: noise levels that are guided; see `guided_timesteps`. (0, inf) guides all.
            unconditional: what guidance compares with: without the reference's tokens, or without tokens and hint.
            solver: `ddim`, or `dpmsolver++`, which needs fewer steps.
            eta: noise that DDIM adds, from 0 to 1.
            timestep_spacing: how the steps are spread over the noise levels; see `sampling_timesteps`.
            box_outline: who draws the outline in a mask that is a box: the model, or a reference on white; see
                `dtc_jax.data.outline`.
            context: how much of the scene round the mask the model sees; see `window.crop_window`.
            keep_backdrop: leave a reference's off-white studio backdrop as it is, in place of making it white.
            feather: width in pixels of a blend along the mask's edge, inside it; None takes as many as one of the
                model's pixels covers, which is none where the result is not enlarged.
            regions: what a mask of several parts means: the product in `each` of them, in the `largest`, or one product
                over all of them `together`. Specks are no parts.
            batch_size: images per call of the compiled function; None: see `choose_batch`.

        Returns:
            `num_images` uint8 RGB arrays of the scene's size, equal to the scene outside the mask.

        Raises:
            InputError: an input that cannot be used.
        """
        choices = SamplingChoices(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            unconditional=unconditional,
            solver=solver,
            eta=eta,
            timestep_spacing=timestep_spacing,
            box_outline=box_outline,
        )
        check_count("num_images", num_images)
        check_feather(feather)
        case = self.prepare_regions(
            scene,
            mask,
            reference,
            box=box,
            context=context,
            keep_backdrop=keep_backdrop,
            regions=regions,
            box_outline=resolve_sampling(self.config, choices).box_outline,
        )
        # A region's images in a row: what they share is computed once for those of a batch.
        wanted = [(region, seed, index) for region in case.regions for index in range(num_images)]
        if batch_size is None:
            batch_size, _ = choose_batch(len(wanted), None, jax.local_devices()[:1])
        results = list(self.generate(wanted, choices, batch_size=batch_size))
        return [case.put_back(results[index::num_images], feather) for index in range(num_images)]

    def prepare(
        self,
        scene: ImageLike,
        mask: ImageLike | None,
        reference: ImageLike | None = None,
        *,
        box: Sequence[int] | None = None,
        context: float = DEFAULT_CONTEXT,
        keep_backdrop: bool = False,
        box_outline: BoxOutline | None = None,
    ) -> Prepared:
        """One case, read, checked and brought to the model's sizes, for `generate`; all of the mask is one region."""
        together = self.prepare_regions(
            scene,
            mask,
            reference,
            box=box,
            context=context,
            keep_backdrop=keep_backdrop,
            regions="together",
            box_outline=box_outline,
        )
        return together.regions[0]

    def prepare_regions(
        self,
        scene: ImageLike,
        mask: ImageLike | None,
        reference: ImageLike | None = None,
        *,
        box: Sequence[int] | None = None,
        context: float = DEFAULT_CONTEXT,
        keep_backdrop: bool = False,
        regions: Regions = "each",
        box_outline: BoxOutline | None = None,
    ) -> PreparedPhoto:
        """As `prepare`, with every region of the mask on its own; see `read_case`."""
        return read_case(
            scene,
            mask,
            reference,
            self.config.model,
            box=box,
            context=context,
            keep_backdrop=keep_backdrop,
            regions=regions,
            box_outline=self.config.sampling.box_outline if box_outline is None else box_outline,
        )

    def generate(
        self,
        cases: Iterable[tuple[Prepared, int, int]],
        choices: SamplingChoices = CHECKPOINTS_OWN,
        *,
        batch_size: int = 1,
    ) -> Iterator[Float[np.ndarray, "size size 3"]]:
        """Sample cases at the model's size, in order, `batch_size` at a time.

        Args:
            cases: (case, seed, index of the image among those of this seed); read as needed.
            choices: how to sample, where not as the checkpoint says.
            batch_size: the last batch is filled up, so that one function is compiled for all.

        Yields:
            Images in [0, 1], float32, for `Prepared.put_back`.

        Raises:
            InputError: a choice out of range.
        """
        for batch in self.generate_batches(cases, choices, batch_size=batch_size):
            yield from batch

    def generate_batches(
        self,
        cases: Iterable[tuple[Prepared, int, int]],
        choices: SamplingChoices = CHECKPOINTS_OWN,
        *,
        batch_size: int = 1,
        devices: Sequence[jax.Device] | None = None,
    ) -> Iterator[list[Float[np.ndarray, "size size 3"]]]:
        """As `generate`, a batch at a time, on several devices; the next one is read while the devices are at work.

        Args:
            cases: see `generate`.
            choices: how to sample, where not as the checkpoint says.
            batch_size: on all devices together, a multiple of their number.
            devices: this process's; None: where the parameters are.

        Yields:
            The images of each batch.

        Raises:
            InputError: a choice out of range.
        """
        check_count("batch_size", batch_size)
        settings = sampler_settings(self.config, choices, self.dtype)
        scale = jnp.float32(resolve_sampling(self.config, choices).guidance_scale)
        several = devices is not None and len(devices) > 1
        params = replicate(self.params, devices) if several and devices is not None else self.params
        remaining = iter(cases)
        sampled: tuple[jax.Array, int] | None = None
        while chunk := list(islice(remaining, batch_size)):
            filled = chunk + [chunk[-1]] * (batch_size - len(chunk))
            cases_of_batch = [
                case.batch for case in _rows(filled, len(devices) if several and devices is not None else 1)
            ]
            if self.catalogue is not None:
                cases_of_batch = with_tokens(self.catalogue, cases_of_batch, self.params, settings)
            batch = {name: np.stack([case[name] for case in cases_of_batch]) for name in cases_of_batch[0]}
            keys = jnp.concatenate([image_keys(check_seed(seed), 1, first=index) for _, seed, index in filled])
            if several and devices is not None:
                images = generate_on(params, batch, keys, scale, settings, devices)
            else:
                images = generate_jit(params, batch, keys, scale, settings)
            if sampled is None:
                release_freed_memory()  # of compiling, while the first batch is under way
            else:
                # The batch before is fetched once this one is under way.
                yield list(np.asarray(sampled[0])[: sampled[1]])
            sampled = images, len(chunk)
        if sampled is not None:
            yield list(np.asarray(sampled[0])[: sampled[1]])
