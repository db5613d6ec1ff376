"""The protocol scores what it should: the truth, a distractor's truth, noise and the naive paste."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dtc_jax.data.procedural import HELD_OUT_START
from dtc_jax.evaluation.cases import Cases, case_product_ids, case_scene, evaluation_batch, make_cases
from dtc_jax.evaluation.fidelity import (
    GREY,
    GenerationInputs,
    evaluate_fidelity,
    hide_truth,
    score_results,
)
from dtc_jax.evaluation.metrics import MAX_PSNR

COUNT = 48


@pytest.fixture(name="cases", scope="module")
def _cases() -> Cases:
    return evaluation_batch(0, COUNT, seed=5)


def _scores(result: np.ndarray, cases: Cases) -> dict[str, np.ndarray]:
    scores = score_results(result, cases.truth, cases.mask, cases.easy, cases.hard)
    return {name: np.asarray(values) for name, values in scores._asdict().items()}


def test_cases_are_what_they_say(cases: Cases) -> None:
    assert cases.easy.shape == cases.hard.shape == (COUNT, 31, 64, 64, 3)
    assert (cases.product_id >= HELD_OUT_START).all()
    assert len(np.unique(cases.product_id)) == COUNT
    assert set(np.unique(cases.mask)) == {0, 1}
    for kind in (cases.is_box, ~cases.is_box):
        assert 0.25 < kind.mean() < 0.75
    # Hard distractors are in the same place: outside the mask hardly anything differs. Easy ones have other outlines.
    outside = cases.mask[:, None] == 0
    differs = [(np.abs(x.astype(int) - cases.truth[:, None]) * outside).mean() for x in (cases.hard, cases.easy)]
    assert differs[0] < 0.2
    assert differs[1] > 2 * differs[0]
    # No distractor is the truth.
    for others in (cases.easy, cases.hard):
        inside = (np.abs(others.astype(int) - cases.truth[:, None]) * cases.mask[:, None]).sum(axis=(2, 3, 4))
        assert inside.min() > 0


def test_a_case_depends_on_seed_and_number_alone(cases: Cases) -> None:
    again = make_cases([7, 3], seed=5)
    for field, values in again._asdict().items():
        np.testing.assert_array_equal(values, getattr(cases, field)[[7, 3]], err_msg=field)
    other = make_cases([7], seed=6)
    assert (other.truth != again.truth[:1]).mean() > 0.5
    ids = np.concatenate([np.asarray(case_product_ids(i, 5)) for i in range(3)])
    assert len(np.unique(ids)) == 96
    assert float(case_scene(7, 5).scale) == float(case_scene(np.uint32(7), 5).scale)
    with pytest.raises(ValueError, match="seed"):
        make_cases([0], seed=2**11)
    with pytest.raises(ValueError, match="at most 32768 products"):
        make_cases([2**15], seed=0)


def test_the_truth_is_always_retrieved(cases: Cases) -> None:
    scores = _scores(cases.truth, cases)
    np.testing.assert_array_equal(scores["easy_retrieval"], 1)
    np.testing.assert_array_equal(scores["hard_retrieval"], 1)
    np.testing.assert_allclose(scores["ssim"], 1, atol=1e-5)
    np.testing.assert_allclose(scores["psnr"], MAX_PSNR)
    # What lies outside the mask does not count.
    elsewhere = np.where(cases.mask > 0, cases.truth, 255 - cases.truth)
    np.testing.assert_array_equal(_scores(elsewhere, cases)["ssim"], scores["ssim"])


def test_a_distractor_is_never_retrieved(cases: Cases) -> None:
    hard = _scores(cases.hard[:, 13], cases)
    np.testing.assert_array_equal(hard["hard_retrieval"], 0)
    assert hard["easy_retrieval"].mean() > 0.5  # the same silhouette and palette
    easy = _scores(cases.easy[:, 30], cases)
    np.testing.assert_array_equal(easy["easy_retrieval"], 0)
    assert easy["ssim"].mean() < 0.6


def test_noise_is_at_chance(cases: Cases) -> None:
    generator = np.random.default_rng(0)
    retrieved = [
        [_scores(noise, cases)[name].mean() for name in ("easy_retrieval", "hard_retrieval")]
        for noise in generator.integers(0, 256, (4, *cases.truth.shape), dtype=np.uint8)
    ]
    assert np.mean(retrieved) < 0.12  # 1/32 = 0.031


def test_naive_paste_is_a_baseline_to_beat(cases: Cases) -> None:
    scores = _scores(cases.naive_paste, cases)
    for name in ("easy_retrieval", "hard_retrieval"):
        # On 256 products 0.40 and 0.38: 0.27 with a fine mask, whose inner rectangle is small, 0.49 with a box.
        assert 0.1 < scores[name].mean() < 0.65
        assert scores[name][~cases.is_box].mean() < 0.5
    assert scores["ssim"].mean() < 0.5
    stretched = _scores(cases.stretched_paste, cases)
    assert stretched["hard_retrieval"].mean() > scores["hard_retrieval"].mean()


def test_evaluate_fidelity_hides_the_truth_and_reports(cases: Cases) -> None:
    seen: list[GenerationInputs] = []
    shown: list[Any] = []

    def grey(inputs: GenerationInputs) -> np.ndarray:
        seen.append(inputs)
        return inputs.scene

    truth = {int(number): image for number, image in zip(cases.case, cases.truth, strict=True)}
    report = evaluate_fidelity(
        grey,
        num_products=10,
        batch_size=4,
        seed=5,
        others={"oracle": lambda inputs: np.stack([truth[int(number)] for number in inputs.seed])},
        settings={"solver": "none"},
        on_batch=lambda batch, results: shown.append((batch.case, sorted(results))),
        progress=False,
    )
    json.dumps(report)
    assert len(seen) == 3
    assert all(len(inputs.scene) == 4 for inputs in seen)
    np.testing.assert_array_equal(seen[0].scene, hide_truth(cases.truth[:4], cases.mask[:4]))
    assert (seen[0].scene[np.broadcast_to(seen[0].mask > 0, seen[0].scene.shape)] == GREY).all()
    assert shown[0][1] == ["model", "naive_paste", "oracle", "stretched_paste"]
    rows = report["rows"]
    assert list(rows) == ["model", "oracle", "naive_paste", "stretched_paste"]
    assert rows["model"]["all"]["n"] == rows["model"]["fine"]["n"] + rows["model"]["box"]["n"] == 10
    assert rows["oracle"]["all"]["hard_retrieval"] == {"mean": 1, "low": 1, "high": 1}
    expected = _scores(cases.naive_paste, cases)["ssim"][:10].mean()
    assert rows["naive_paste"]["all"]["ssim"]["mean"] == pytest.approx(expected, rel=1e-6)
    minus = report["model_minus"]["oracle"]["all"]["ssim"]["mean"]
    assert minus == pytest.approx(rows["model"]["all"]["ssim"]["mean"] - rows["oracle"]["all"]["ssim"]["mean"])
    assert report["protocol"]["num_products"] == 10
    assert report["settings"] == {"solver": "none"}


def test_evaluate_fidelity_refuses_what_it_cannot_score() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_fidelity(lambda inputs: inputs.scene, num_products=0)
    with pytest.raises(ValueError, match="model: results are float32"):
        evaluate_fidelity(
            lambda inputs: inputs.scene.astype(np.float32), num_products=1, batch_size=1, seed=5, progress=False
        )
