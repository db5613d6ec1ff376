"""The endless global order: which record, and which random numbers, belong to a place in it.

Everything is a function of (seed, place) alone, so that a batch is the same whoever prepares it: any number of
threads, workers, processes or restarts.
"""

from __future__ import annotations

from typing import NamedTuple

import grain
import numpy as np

from dtc_jax.data_config import DataConfig

MAX_PLACES = 2**32
"""Places are counted in 32 bits: `index` in the batch, from which noise and timesteps are drawn."""


class Augmentation(NamedTuple):
    """What is drawn for one place of the order."""

    box: bool
    """The mask is the bounding box of the fine mask."""
    flip: bool
    """Scene, mask and reference are mirrored."""
    angle: float
    """Degrees by which the reference is turned, counter-clockwise."""


class Order:
    """Epoch after epoch, every record once per epoch, each epoch in another order (Grain's index shuffle)."""

    def __init__(self, count: int, seed: int) -> None:
        """
        Args:
            count: records in the split, at least one.
            seed: in [0, 2**32).
        """
        self.count = count
        self._order = grain.MapDataset.range(count).shuffle(seed=seed).repeat()

    def record(self, place: int, attempt: int = 0) -> int:
        """The record at a place. Further attempts, from 1, are what replaces it: the next ones of the same epoch."""
        epoch, position = divmod(place, self.count)
        return int(self._order[epoch * self.count + (position + attempt) % self.count])


def draw_augmentation(place: int, config: DataConfig) -> Augmentation:
    """The random numbers of a place: Philox keyed by (seed, place), so that no other place has to be drawn first."""
    # Raw bits, not a Generator's methods: those may change between versions of numpy.
    bits = np.random.Philox(key=np.array([config.seed, place], np.uint64)).random_raw(3)
    box, flip, turn = (float(value) / 2**53 for value in bits >> np.uint64(11))
    return Augmentation(
        box=box < config.box_probability,
        flip=flip < config.flip_probability,
        angle=(2 * turn - 1) * config.rotation_degrees,
    )


def evaluation_augmentation(number: int, config: DataConfig) -> Augmentation:
    """What evaluation does to its `number`-th sample: nothing, but fine and box masks take turns in their shares."""
    share = config.box_probability
    return Augmentation(box=int((number + 1) * share) > int(number * share), flip=False, angle=0.0)
