"""Which record and which random numbers belong to a place."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax.config import ConfigError, DataConfig
from dtc_jax.data.order import Order, draw_augmentation, evaluation_augmentation


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_each_record_once_per_epoch(count: int) -> None:
    order = Order(count, seed=3)
    for epoch in (0, 1, 5, 40_000_000):
        assert sorted(order.record(epoch * count + place) for place in range(count)) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [Order(50, seed).record(50 * number + place) for place in range(50)]

    assert epoch(3, 0) != list(range(50))
    assert epoch(3, 0) != epoch(3, 1) != epoch(3, 2)
    assert epoch(3, 0) != epoch(7, 0)
    assert epoch(3, 1) == epoch(3, 1)


def test_replacements_are_the_next_of_the_epoch() -> None:
    order = Order(5, seed=0)
    epoch = [order.record(5 + place) for place in range(5)]
    assert [order.record(8, attempt) for attempt in range(5)] == [epoch[(3 + attempt) % 5] for attempt in range(5)]


def test_shares_of_what_is_drawn() -> None:
    drawn = [draw_augmentation(place, DataConfig(seed=1)) for place in range(1500)]
    box, flip, angle = (np.array(values, float) for values in zip(*drawn, strict=True))
    # Four standard deviations of a fair coin, and so on.
    assert abs(box.mean() - 0.5) < 0.052 and abs(flip.mean() - 0.5) < 0.052
    assert -10 <= angle.min() < -9.8 and 9.8 < angle.max() <= 10 and abs(angle.mean()) < 0.6
    assert np.abs(np.corrcoef([box, flip, angle])[np.triu_indices(3, 1)]).max() < 0.104
    # Neighbouring places, and the same place under another seed, have nothing to do with each other.
    assert abs(np.corrcoef(box[:-1], box[1:])[0, 1]) < 0.104
    other = np.array([draw_augmentation(place, DataConfig(seed=2)).box for place in range(1500)], float)
    assert abs(np.corrcoef(box, other)[0, 1]) < 0.104


def test_probabilities_are_those_of_the_configuration() -> None:
    config = DataConfig(box_probability=0.0, flip_probability=1.0, rotation_degrees=0.0)
    assert {draw_augmentation(place, config)[:2] for place in range(100)} == {(False, True)}
    assert all(draw_augmentation(place, config).angle == 0 for place in range(100))
    few = [draw_augmentation(place, DataConfig(box_probability=0.1)).box for place in range(800)]
    assert 0.06 < np.mean(few) < 0.14


def test_draws_stay_what_they_were() -> None:
    """A resumed run must draw what it would have drawn, whatever version of numpy it is resumed with."""
    drawn = [draw_augmentation(place, DataConfig(seed=5)) for place in (0, 1, 2**32 - 1)]
    assert [(one.box, one.flip, round(one.angle, 6)) for one in drawn] == [
        (False, False, -5.843821),
        (False, True, 5.235602),
        (True, True, -5.341455),
    ]
    assert [Order(100, seed=5).record(place) for place in (0, 1, 250)] == [80, 73, 13]


def test_evaluation_is_not_augmented_and_its_masks_take_turns() -> None:
    drawn = [evaluation_augmentation(number, DataConfig()) for number in range(6)]
    assert [one.box for one in drawn] == [False, True] * 3
    assert not any(one.flip or one.angle for one in drawn)
    assert not any(evaluation_augmentation(number, DataConfig(box_probability=0)).box for number in range(6))
    assert all(evaluation_augmentation(number, DataConfig(box_probability=1)).box for number in range(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "records"}, "data.path"),
        ({"seed": 2**32}, "data.seed"),
        ({"box_probability": 1.5}, "data.box_probability"),
        ({"rotation_degrees": 90}, "data.rotation_degrees"),
        ({"workers": -1}, "data.workers"),
        ({"threads": 0}, "data.threads"),
        ({"prefetch": 0}, "data.prefetch"),
        ({"max_broken": -0.1}, "data.max_broken"),
    ],
)
def test_wrong_values_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options)  # type: ignore[arg-type]


def test_what_may_change_when_a_run_goes_on() -> None:
    config = DataConfig(kind="records", path="/a")
    moved = DataConfig(kind="records", path="gs://b", workers=8, threads=1, prefetch=4, max_broken=0.5)
    assert config.draws_same_as(moved)
    assert not config.draws_same_as(DataConfig(kind="records", path="/a", seed=1))
    assert not config.draws_same_as(DataConfig(kind="records", path="/a", rotation_degrees=5))
    assert not config.draws_same_as(DataConfig())
