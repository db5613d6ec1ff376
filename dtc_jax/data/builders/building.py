"""The TFDS builder that all data sets of this package share: records from a source, in ArrayRecord files.

Importing this needs tensorflow_datasets (not TensorFlow).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from dtc_jax.config_base import require
from dtc_jax.data.builders.beam_records import BROKEN, beam_records, counts
from dtc_jax.data.builders.parts import Preparation, make_records, open_parts
from dtc_jax.data.builders.report import Report, allowed_broken
from dtc_jax.data.builders.source import Item, Source
from dtc_jax.data.images import InputError
from dtc_jax.data.records import features
from dtc_jax.data.window import DEFAULT_CONTEXT
from dtc_jax.locks import take_lock


@dataclasses.dataclass(eq=False, kw_only=True)
class RecordsConfig(tfds.core.BuilderConfig):
    """What every data set can be told; `name` is the folder between the data set's and the version's."""

    source: str = ""
    """What it is made from."""

    size: int = 512
    """Height and width of the stored scenes."""
    context: float = DEFAULT_CONTEXT
    """How much of the photo is kept round the mask, as a share of the mask's larger side."""
    max_broken: float = 0.01
    """Share of the cases that may be broken; one always may, unless this is 0."""
    workers: int = 1
    """Processes that make records."""
    restart: bool = False
    """Begin anew where a build was cut off, in place of continuing."""
    beam: bool = False
    """Make the records in an Apache Beam pipeline, without parts."""
    progress: Callable[[int, int], object] | None = None
    """Called with the number of cases done since the last call, and that of all cases."""

    def check(self) -> None:
        """Raise a ConfigError if the options cannot work."""
        require(bool(self.source), "source: is missing; name what the data set is made from")
        require(self.size >= 16, f"size = {self.size}: must be at least 16 pixels")
        require(self.context >= 0, f"context = {self.context}: must not be negative")
        require(0 <= self.max_broken < 1, f"max_broken = {self.max_broken}: must be at least 0 and below 1")
        require(self.workers >= 1, f"workers = {self.workers}: must be at least 1")


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes what a source gives. Records stay in the order of their source: training shuffles them all anyway."""

    VERSION: ClassVar[Any] = tfds.core.Version("1.0.0")
    DESCRIPTION: ClassVar[str] = ""
    HOMEPAGE: ClassVar[str | None] = None
    CITATION: ClassVar[str | None] = None
    # Nothing is downloaded. TFDS would look for checksums, with importlib_resources, which it does not always install.
    url_infos: ClassVar[None] = None

    def __init__(self, *, file_format: Any = "array_record", **options: Any) -> None:
        super().__init__(file_format=file_format, **options)

    @abc.abstractmethod
    def make_source(self) -> Source:
        """The source that the configuration names."""

    @property
    def folder(self) -> Path:
        """Of all versions of this data set."""
        return Path(self.data_dir_root) / self.name / str(self.builder_config.name)

    @property
    def log(self) -> Path:
        """Where broken cases are listed: beside the version's folder."""
        return self.folder / f"broken-{self.version}.txt"

    @property
    def parts(self) -> Path:
        """Where an unfinished build keeps its records."""
        return self.folder / f"incomplete.{self.version}-parts"

    def download_and_prepare(self, **options: Any) -> None:
        """Build the data set, or continue a build that was cut off; a finished one is left as it is.

        Nothing here looks finished before it is: TFDS writes to a folder named `incomplete...` and renames it.

        Raises:
            InputError: the source cannot be used, too many of its cases are broken, or another build is at work.
        """
        self.builder_config.check()
        if Path(self.data_dir).is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _only_build(self.folder / ".lock"):
            for left in self.folder.glob(f"incomplete.*_{self.version}"):
                shutil.rmtree(left)
            # TFDS makes a folder for downloads, of which there are none.
            options["download_dir"] = options.get("download_dir") or self.parts / "downloads"
            super().download_and_prepare(**options)
            self.report.write_log(self.log)
            shutil.rmtree(self.parts, ignore_errors=True)

    def _info(self) -> tfds.core.DatasetInfo:
        described = self._preparation().describe()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=features(self.builder_config.size),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=described.get("licence"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(described),
        )

    def _preparation(self) -> Preparation:
        config = self.builder_config
        return Preparation(source=self.make_source(), size=config.size, context=config.context)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        preparation, config = self._preparation(), self.builder_config
        items = preparation.source.items()
        self.report = Report(sum(map(len, items.values())), config.max_broken)
        if config.beam:
            return {split: beam_records(preparation, cases) for split, cases in items.items()}
        open_parts(self.parts, preparation.fingerprint(items), config.restart)
        return {split: self._generate_examples(preparation, split, cases) for split, cases in items.items()}

    def _generate_examples(
        self, preparation: Preparation, split: str, items: Sequence[Item]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config

        def progress(count: int) -> None:
            if config.progress is not None:
                config.progress(count, self.report.total)

        yield from enumerate(
            make_records(preparation, split, items, self.parts, self.report, self.log, config.workers, progress)
        )
        self.info.metadata.update(self.report.describe())

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        """After a Beam pipeline: its counters are the report. The broken cases' names are in its workers' logs."""
        counted = counts(pipeline_result)
        num_broken = counted.pop(BROKEN, 0)
        allowed = allowed_broken(self.report.max_broken, self.report.total)
        if num_broken > allowed:
            raise InputError(f"{num_broken} of {self.report.total} cases are broken, and {allowed} may be (max_broken)")
        self.report.skipped.update(counted)
        self.info.metadata.update({**self.report.describe(), "num_broken": num_broken})


@contextlib.contextmanager
def _only_build(lock: Path) -> Iterator[None]:
    """Keep other builds out of a data set's folder while this one runs; the lock goes with the process.

    Raises:
        InputError: there is another one.
    """
    with lock.open("w") as file:
        if not take_lock(file):
            raise InputError(f"data set {lock.parent}: another build is at work in it")
        yield
