"""Records made by Apache Beam, for catalogues that one machine cannot prepare. Beam is imported when it is used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dtc_jax.config_base import ConfigError
from dtc_jax.data.builders.parts import Preparation
from dtc_jax.data.builders.source import Item, Skipped

NAMESPACE = "dtc_jax.records"
"""Of the counters; their names are `broken` and the reasons of skipped cases."""

BROKEN = "broken"


@dataclass(frozen=True)
class RecordOrCount:
    """From (number, item) to one (number, record), or none and a counter one higher. Beam sends it to its workers."""

    preparation: Preparation

    def __call__(self, numbered: tuple[int, Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        from apache_beam.metrics import Metrics

        number, item = numbered
        record = self.preparation.record(item)
        if isinstance(record, str):
            logging.warning("broken: %s: %s", item.id, record)
            Metrics.counter(NAMESPACE, BROKEN).inc()
        elif isinstance(record, Skipped):
            Metrics.counter(NAMESPACE, record.reason).inc()
        else:
            yield number, record


def beam_records(preparation: Preparation, items: Sequence[Item]) -> Any:
    """A PTransform that makes the records of a split.

    Raises:
        ConfigError: Apache Beam is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise ConfigError(f"beam = True needs Apache Beam ({error}); install it: pip install apache-beam") from None
    numbered = [(number, Item(*item)) for number, item in enumerate(items)]
    # The order of the source would put neighbours, which take alike long, on one worker.
    return (
        apache_beam.Create(numbered)
        | "spread" >> apache_beam.Reshuffle()
        | "records" >> apache_beam.FlatMap(RecordOrCount(preparation))
    )


def counts(pipeline_result: Any) -> Counter[str]:
    """The counters of a pipeline that has run."""
    found: Counter[str] = Counter()
    for counter in pipeline_result.metrics().query()["counters"]:
        if counter.key.metric.namespace == NAMESPACE:
            # Not every runner knows what was committed.
            found[counter.key.metric.name] += counter.committed or counter.attempted or 0
    return found
