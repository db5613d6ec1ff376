"""Making a cache: what the frozen networks make of every sample that the first epochs will draw."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.cached import (
    AUGMENTATION,
    Cache,
    array_shapes,
    cache_features,
    cache_of,
    pack_augmentation,
    settings,
)
from dtc_jax.data.order import Augmentation
from dtc_jax.data.pipeline import BrokenRecord, Entry, HostBatch, Loaded, RecordReader, follow_parent, stack
from dtc_jax.data.records import FEATURES, SCHEMA, fingerprint
from dtc_jax.data.shards import Shard, ShardedWriter, plan_shards
from dtc_jax.models.inputs import masked_scene, normalize_batch
from dtc_jax.training.broken_records import BrokenShare, OnBroken
from dtc_jax.training.cached_networks import network_fingerprints
from dtc_jax.training.objective import make_model
from dtc_jax.training.params import FlatParams
from dtc_jax.training.placement import put_each
from dtc_jax.training.sharding import batch_sharding, tree_sharding
from dtc_jax.weights.model_folder import flatten_params, unflatten_params

SHARD_BYTES = 256 * 2**20
"""About what a file of a cache holds, and at most what is lost when the work is cut off."""

INPUTS = {"tokens": ("reference",), "latents": ("scene", "mask")}
"""What of a batch each network reads."""

VERSION = "1.0.0"


@dataclass(frozen=True)
class CachePlan:
    """What a cache will hold."""

    config: ExperimentConfig
    """Its `data` names the data set that is cached, and in `cached` what."""
    dtype: str
    """Type in which the arrays are stored."""
    readers: Mapping[str, RecordReader]
    """Of every split."""
    variants: Mapping[str, int]
    """Of every record, by split."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays of one sample."""
        return array_shapes(self.config.model, self.config.data.cached)

    @property
    def counts(self) -> dict[str, int]:
        """Entries by split."""
        return {split: reader.count * self.variants[split] for split, reader in self.readers.items()}

    @property
    def array_bytes(self) -> int:
        """Of the arrays of one sample."""
        return sum(math.prod(shape) for shape in self.shapes.values()) * jnp.dtype(self.dtype).itemsize

    @property
    def image_bytes(self) -> int:
        """What the record of one sample takes besides, on average."""
        data_set = next(iter(self.readers.values())).data_set
        stored = sum(path.stat().st_size for path in data_set.folder.iterdir() if "array_record" in path.name)
        return stored // max(1, sum(data_set.splits.values()))

    @property
    def total_bytes(self) -> int:
        """Of the whole cache, about."""
        return sum(self.counts.values()) * (self.array_bytes + self.image_bytes)


def plan_cache(config: ExperimentConfig, variants: int, dtype: str) -> CachePlan:
    """Look at the data set that is to be cached.

    Args:
        config: The experiment; `data.cached` says what is cached.
        variants: Of every training record.
        dtype: In which the arrays are stored.

    Raises:
        ConfigError: there is no such data set, or it is a cache itself.
    """
    if variants < 1:
        raise ConfigError(f"--variants = {variants} must be at least 1")
    data = dataclasses.replace(config.data, cached=())
    reader = RecordReader(data, config.model)
    if cache_of(reader.data_set) is not None:
        raise ConfigError(f"data set {reader.data_set.folder}: is a cache itself; name the data set that it is from")
    readers, of = {data.split: reader}, {data.split: variants}
    evaluation = data.evaluation_split
    if evaluation != data.split and reader.data_set.splits.get(evaluation):
        readers[evaluation], of[evaluation] = RecordReader(data, config.model, evaluation), 1
    return CachePlan(config, dtype, readers, of)


def frozen_outputs(config: ExperimentConfig, dtype: str) -> Callable[[PyTree, PyTree], dict[str, Array]]:
    """The pure function `(params, batch) -> arrays` [b, ...] of the networks behind `data.cached`, as `dtype`."""
    model, cached = make_model(config), config.data.cached

    def run(params: PyTree, batch: PyTree) -> dict[str, Array]:
        images = normalize_batch(batch, config.model)
        arrays: dict[str, Array] = {}
        if "tokens" in cached:
            arrays["tokens"] = model.reference_features(params, images["reference"])
        if "latents" in cached:
            arrays["latent_mean"], arrays["latent_logvar"] = model.vae_posterior(params, images["scene"])
            hidden = masked_scene(images["scene"], images["mask"])
            arrays["masked_latents"] = model.encode_images(params, hidden)
        return {name: array.astype(dtype) for name, array in arrays.items()}

    return run


def make_cache(
    plan: CachePlan,
    params: PyTree,
    output: Path,
    mesh: Mesh,
    *,
    part: tuple[int, int] = (0, 1),
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], object] = lambda done, total: None,
    on_broken: OnBroken = lambda record: None,
) -> Path | None:
    """Write the cache, or what is missing of it.

    Args:
        plan: From `plan_cache`.
        params: The networks' parameters, nested, on the host.
        output: Folder of the cache; it gets a folder named by a version.
        mesh: Where the networks run; its size must divide the batch.
        part: (i, n): write the i-th of every n files only, because other machines write the rest.
        shard_bytes: About the size of a file.
        progress: Called with the number of samples that are done, and that of all.
        on_broken: Told of each record that cannot be used, once.

    Returns:
        The finished cache's folder; None while other parts are missing.

    Raises:
        ConfigError: what lies in `output` is finished or another cache's; too many records are broken; or an output of
            the networks is not finite in the type that it is stored in.
    """
    cache = describe(plan, network_fingerprints(params))
    source = next(iter(plan.readers.values())).data_set
    shards = plan_shards(plan.counts, shard_bytes // (plan.array_bytes + plan.image_bytes))
    text = json.dumps({**dataclasses.asdict(cache), "shards": len(shards)}, sort_keys=True)
    # The name tells caches of other networks or samples apart: a run goes on with the one it began with.
    name = f"{source.name}_cached_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    writer = ShardedWriter(
        output, name, VERSION, cache_features(source.size, plan.shapes, jnp.dtype(plan.dtype)), shards
    )
    writer.open(json.loads(text))
    missing = [shard for number, shard in enumerate(shards) if number % part[1] == part[0]]
    missing = [shard for shard in missing if shard in set(writer.missing())]
    total = sum(plan.counts.values())
    done = total - sum(shard.stop - shard.start for shard in writer.missing())
    progress(done, total)
    with closing(_examples(plan, params, mesh, missing, on_broken)) as examples:
        for shard in missing:
            count = shard.stop - shard.start
            writer.write(shard, itertools.islice(examples, count))
            done += count
            progress(done, total)
    if writer.missing():
        return None
    metadata = {**source.metadata, "schema": SCHEMA, "cache": dataclasses.asdict(cache)}
    return writer.finish(metadata, f"{source.name} {source.version} with the outputs of frozen networks")


def describe(plan: CachePlan, fingerprints: Mapping[str, str]) -> Cache:
    """What the cache's metadata will say."""
    source, config = next(iter(plan.readers.values())).data_set, plan.config
    return Cache(
        variants=dict(plan.variants),
        cached=config.data.cached,
        dtype=plan.dtype,
        made_with=settings(config.data, config.model, config.data.cached),
        networks=dict(fingerprints),
        compute_dtype=config.training.compute_dtype,
        frozen_dtype=config.training.frozen_dtype,
        source={
            "name": source.name,
            "version": source.version,
            "records": dict(source.splits),
            "fingerprints": {split: fingerprint(source, split) for split in plan.readers},
        },
    )


# -------------------------------------------------------------------------------------------------------------- entries


class Entries:
    """What Grain iterates over: the samples of some shards, one after the other."""

    def __init__(self, plan: CachePlan, shards: Sequence[Shard]) -> None:
        self._readers, self._training = dict(plan.readers), plan.config.data.split
        self._shards = tuple(shards)
        self._ends = tuple(itertools.accumulate(shard.stop - shard.start for shard in shards))
        self._places: tuple[int, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": None}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        index = bisect.bisect_right(self._ends, int(position))
        shard = self._shards[index]
        number = shard.stop - (self._ends[index] - int(position))
        reader = self._readers[shard.split]
        if shard.split != self._training:
            return tuple(reader.evaluation_entry(number))
        variant, slot = divmod(number, reader.count)
        return tuple(reader.training_entry(int(self._places_of(reader, variant)[slot])))

    def _places_of(self, reader: RecordReader, variant: int) -> np.ndarray:
        """Where in an epoch's order each record is."""
        if (known := self._places) is not None and known[0] == variant:
            return known[1]
        first = variant * reader.count
        places = np.empty(reader.count, np.int64)
        for place in range(first, first + reader.count):
            places[reader.order.record(place)] = place
        self._places = variant, places
        return places


def _read(plan: CachePlan, shards: Sequence[Shard]) -> Any:
    """Grain's iterator over the entries of some shards."""
    data = plan.config.data
    dataset = grain.MapDataset.source(Entries(plan, shards)).to_iter_dataset(
        grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(data.threads, 16))
    )
    if data.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # as in the pipeline
        options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=8)
        dataset = dataset.mp_prefetch(options, worker_init_fn=follow_parent)
    return iter(dataset)


def _examples(
    plan: CachePlan, params: PyTree, mesh: Mesh, shards: Sequence[Shard], on_broken: OnBroken
) -> Generator[dict[str, Any], None, None]:
    """What is written for every entry of some shards, in order; one batch is computed while the one before is written.

    Raises:
        ConfigError: see `make_cache`.
    """
    count = sum(shard.stop - shard.start for shard in shards)
    if not count:
        return
    config = plan.config
    names = sorted({name for kind in config.data.cached for name in INPUTS[kind]})
    size = config.training.batch_size
    run = _compiled(plan, params, mesh)
    share = BrokenShare(config.data.max_broken, sum(plan.counts.values()), on_broken)
    iterator = _read(plan, shards)
    pending: tuple[list[Entry], dict[str, Array]] | None = None
    try:
        for start in range(0, count, size):
            entries = [Entry(*next(iterator)) for _ in range(min(size, count - start))]
            broken = [BrokenRecord(*record) for entry in entries for record in entry.broken]
            batch = stack([Loaded(entry.arrays, ()) for entry in entries])
            share.count(broken, len(entries))
            outputs = run(_padded({name: batch[name] for name in names}, size))
            if pending is not None:
                yield from _joined(plan, *pending)
            pending = entries, outputs
        assert pending is not None
        yield from _joined(plan, *pending)
    finally:
        iterator.close()


def _padded(batch: HostBatch, size: int) -> HostBatch:
    """A batch filled up with its last sample, so that one compiled function takes them all."""
    return {name: np.concatenate([array, *[array[-1:]] * (size - len(array))]) for name, array in batch.items()}


def _compiled(plan: CachePlan, params: PyTree, mesh: Mesh) -> Callable[[HostBatch], dict[str, Array]]:
    training = plan.config.training
    flat: FlatParams = flatten_params(params)
    shardings = tree_sharding(mesh, flat, training.fsdp_min_size, training.sharding_overrides)
    rows = batch_sharding(mesh)
    run = frozen_outputs(plan.config, plan.dtype)
    compiled = jax.jit(
        lambda flat, batch: run(unflatten_params(flat), batch), in_shardings=(shardings, rows), out_shardings=rows
    )
    placed = put_each(flat, shardings, training.frozen_dtype)
    return lambda batch: compiled(placed, jax.device_put(batch, rows))


def _joined(plan: CachePlan, entries: Sequence[Entry], outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
    arrays = {name: np.asarray(array) for name, array in outputs.items()}
    for name, array in arrays.items():
        if not np.isfinite(array[: len(entries)].astype(np.float32)).all():
            raise ConfigError(
                f"{name}: not finite as {plan.dtype}; take --dtype bfloat16, or see whether the networks are sound"
            )
    for row, entry in enumerate(entries):
        record = {name: entry.record[name] for name in FEATURES}
        texts = {name: bytes(record[name]).decode() for name in ("id", "category")}
        yield {
            **record,
            **texts,
            AUGMENTATION: pack_augmentation(Augmentation(*entry.augmentation)),
            **{name: array[row] for name, array in arrays.items()},
        }
