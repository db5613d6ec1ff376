"""What a model was trained on, kept beside its weights wherever they go, so that a card can say its licence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dtc_jax.weights.tensor_source import WeightsError

DATA_FILE = "data_set.json"

PROCEDURAL = "procedural"
"""Name of the data that are generated."""


@dataclass(frozen=True)
class TrainingData:
    """The data of the last training.

    Attributes:
        name: Of the data set.
        licence: As its builder wrote it down; empty if it did not.
    """

    name: str
    licence: str = ""

    @property
    def non_commercial(self) -> bool:
        """Whether the licence excludes commercial use, of the model, too."""
        words = self.licence.lower().replace("-", " ").split()
        return "nc" in words or "non commercial" in " ".join(words) or "noncommercial" in words

    def to_json(self) -> str:
        """The text of `DATA_FILE`."""
        return json.dumps({"name": self.name, "licence": self.licence}, indent=2) + "\n"


def read_training_data(folder: Path) -> TrainingData | None:
    """What lies beside a model's weights, or in a run's folder; None if there is nothing.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text())
        return TrainingData(str(fields["name"]), str(fields.get("licence") or ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{path}: does not say what a data set is called; remove it to go on without") from None
