"""What became of the cases of a build: counts, the broken ones by name, and when there are too many of those."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dtc_jax.arguments import printable
from dtc_jax.data.images import InputError

NAMED = 100
"""Broken cases whose names go into the metadata; the log has them all."""


class Broken(NamedTuple):
    """A case that cannot be read."""

    split: str
    id: str
    reason: str


def allowed_broken(share: float, total: int) -> int:
    """How many of `total` cases may be broken: the share of them, but one at least unless the share is zero.

    One file of a small catalogue is more than any sensible share, and no reason to stop.
    """
    return max(1, int(share * total)) if share > 0 else 0


@dataclass
class Report:
    """Counts of one build; it grows while the build goes on."""

    total: int
    """Cases of all splits."""
    max_broken: float
    """The share of them that may be broken."""
    broken: list[Broken] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Reasons and how often each."""
    records: Counter[str] = field(default_factory=Counter)
    """Records by split."""

    def check(self, log: Path) -> None:
        """Stop the build once there are more broken cases than allowed.

        Raises:
            InputError: how many, the first of them, and where the rest are listed.
        """
        allowed = allowed_broken(self.max_broken, self.total)
        if len(self.broken) > allowed:
            self.write_log(log)
            first = self.broken[0]
            raise InputError(
                f"{len(self.broken)} of {self.total} cases are broken so far, and {allowed} may be (--max-broken "
                f"{self.max_broken:g}); the first: {first.id}: {first.reason}; all: {log}"
            )

    def write_log(self, log: Path) -> None:
        """One line for each broken case: split, id and reason, separated by tabs. No file if there are none."""
        if self.broken:
            lines = ("\t".join(map(printable, case)) + "\n" for case in self.broken)
            log.write_text("".join(lines), encoding="utf-8")
        else:
            log.unlink(missing_ok=True)

    def describe(self) -> dict[str, Any]:
        """For the data set's metadata."""
        return {
            "cases": self.total,
            "num_broken": len(self.broken),
            "broken": [f"{case.split}/{case.id}" for case in self.broken[:NAMED]],
            "num_skipped": sum(self.skipped.values()),
            "skipped": dict(sorted(self.skipped.items())),
        }
