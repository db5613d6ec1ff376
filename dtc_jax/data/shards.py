"""Writing a prepared data set shard by shard, so that one that was cut off goes on with the shard that is missing.

The folder is called `incomplete.VERSION` until all shards and the metadata are in it. A shard has the name that says
it is whole only when it is. Several processes, also on several machines, may write shards of one folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dtc_jax.config_base import ConfigError
from dtc_jax.data.records import import_tfds

PLAN = "plan.json"
MAX_SHARDS = 99_999
"""Of a split: their numbers have five digits."""


class Shard(NamedTuple):
    """Consecutive records of a split."""

    split: str
    number: int
    of: int
    start: int
    stop: int

    def file(self, name: str) -> str:
        """Its file's name, as TFDS looks for it."""
        return f"{name}-{self.split}.array_record-{self.number:05d}-of-{self.of:05d}"


def plan_shards(splits: Mapping[str, int], per_shard: int) -> list[Shard]:
    """Divide splits of the given numbers of records into shards of `per_shard`, in order."""
    shards = []
    for split, count in splits.items():
        size = max(1, per_shard, -(-count // MAX_SHARDS))
        starts = range(0, count, size)
        shards += [
            Shard(split, number, len(starts), start, min(start + size, count)) for number, start in enumerate(starts)
        ]
    return shards


def check_unfinished(target: Path) -> None:
    """Raise a ConfigError if the data set that would be written is there."""
    if target.exists():
        raise ConfigError(f"data set {target}: exists already; remove it, or choose another --output")


class ShardedWriter:
    """A data set that is being written."""

    def __init__(self, root: Path, name: str, version: str, features: Any, shards: list[Shard]) -> None:
        """
        Args:
            root: VERSION becomes a folder in it.
            name: The data set's.
            version: Three numbers.
            features: TFDS features.
            shards: From `plan_shards`.
        """
        self._root, self._name, self._version, self._features = root, name, version, features
        self._shards = shards
        self.folder = root / f"incomplete.{version}"
        self.target = root / version

    def open(self, plan: Mapping[str, Any]) -> bool:
        """Make the folder, or go on with the one that is there.

        Args:
            plan: What decides every record; JSON.

        Returns:
            Whether there is something to go on with.

        Raises:
            ConfigError: what is there was begun with another plan, or is finished.
        """
        check_unfinished(self.target)
        path = self.folder / PLAN
        text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
        if path.exists():
            if path.read_text(encoding="utf-8") != text:
                raise ConfigError(
                    f"data set {self.folder}: was begun with other settings; remove it, or choose another --output"
                )
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(path, text.encode())
        return False

    def missing(self) -> list[Shard]:
        """Shards that are not written yet."""
        return [shard for shard in self._shards if not (self.folder / shard.file(self._name)).exists()]

    def write(self, shard: Shard, examples: Iterable[Mapping[str, Any]]) -> None:
        """Write a shard.

        Args:
            shard: Which.
            examples: As many as it has records, as the features' `encode_example` takes them.
        """
        from array_record.python import array_record_module

        serializer = import_tfds().core.example_serializer.ExampleSerializer(self._features.get_serialized_info())
        path = self.folder / shard.file(self._name)
        # No name that TFDS would take for a shard.
        scratch = self.folder / f"tmp-{os.getpid()}-{shard.split}-{shard.number}"
        try:
            # A group for each record: they are read one by one.
            writer = array_record_module.ArrayRecordWriter(str(scratch), "group_size:1")
            try:
                count = 0
                for count, example in enumerate(examples, start=1):  # noqa: B007
                    writer.write(serializer.serialize_example(self._features.encode_example(example)))
            finally:
                writer.close()
            if count != shard.stop - shard.start:
                raise ValueError(f"{path.name}: {count} records for {shard.stop - shard.start} places")
            scratch.replace(path)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)

    def finish(self, metadata: Mapping[str, Any], description: str) -> Path:
        """Write the metadata and give the folder its name, which is returned; every shard must be there."""
        assert not self.missing()
        tfds = import_tfds()
        splits: dict[str, list[Shard]] = {}
        for shard in self._shards:
            splits.setdefault(shard.split, []).append(shard)
        infos = []
        for split, shards in splits.items():
            template = tfds.core.ShardedFileTemplate(
                data_dir=self.folder,
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                dataset_name=self._name,
                split=split,
                filetype_suffix="array_record",
            )
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard.stop - shard.start for shard in shards],
                    num_bytes=sum((self.folder / shard.file(self._name)).stat().st_size for shard in shards),
                    filename_template=template,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=str(self.folder),
            features=self._features,
            split_infos=infos,
            version=self._version,
            check_data=False,  # would need TensorFlow
            description=description,
            metadata=tfds.core.MetadataDict(metadata),
        )
        # Left by processes that were killed in the middle of a file; none can be at work, for no shard is missing.
        for pattern in ("tmp-*", f"{PLAN}.*.tmp"):
            for left in self.folder.glob(pattern):
                left.unlink(missing_ok=True)
        (self.folder / PLAN).unlink()
        self.folder.rename(self.target)
        return self.target


def _write_whole(path: Path, content: bytes) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
