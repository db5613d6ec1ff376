"""Which trainings a table needs, that finished ones stay, and what is left when one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtc_jax.tables import train_runs
from dtc_jax.tables.budgets import BUDGETS
from dtc_jax.tables.command import main
from dtc_jax.tables.train_runs import Run, TrainingFailed, describe_run, judge_run, row_runs, shared_runs, train_all


def run_of(folder: Path, code: str) -> Run:
    return Run(name=folder.name, experiment=code, folder=folder, seed=3, flags=())


def finish(folder: Path) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")


def test_every_row_has_the_same_budget_and_the_seed_of_its_column(tmp_path: Path) -> None:
    budget = BUDGETS["cpu"]
    runs = row_runs(budget, tmp_path)
    assert len(runs) == 12 and len({one.folder for one in runs}) == 12
    assert [one.experiment for one in runs[:4]] == list(budget.experiments)
    for one in runs:
        assert f"--training.seed {one.seed} --data.seed {one.seed} " in one.command
        assert one.command.endswith(" ".join(budget.flags)) and "--init-from frozen " in one.command
        assert one.words[2:6] == ["--run-dir", str(one.folder), "--init-from", str(tmp_path / "frozen")]
    assert shared_runs(budget, tmp_path) == []
    assert judge_run(budget, tmp_path).seed not in budget.seeds
    full = BUDGETS["full"]
    stages = shared_runs(full, tmp_path)
    assert [one.experiment for one in stages] == ["tiny_autoencoder", "tiny_vgg"]
    assert row_runs(full, tmp_path)[0].init_from == tuple(one.folder / "model" for one in stages)


def test_only_unfinished_runs_are_trained_and_a_failure_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Run, "words", property(lambda run: ["-c", run.experiment]))
    monkeypatch.setattr(train_runs, "CHECKOUT", tmp_path)
    finish(tmp_path / "done")
    done = run_of(tmp_path / "done", "raise SystemExit(9)")
    new = run_of(tmp_path / "new", "open('trained', 'w')")
    train_all([done, new])
    assert (tmp_path / "trained").is_file()
    failing = run_of(tmp_path / "failing", "raise SystemExit(7)")
    never = run_of(tmp_path / "never", "open('never', 'w')")
    with pytest.raises(TrainingFailed) as failed:
        train_all([done, failing, never])
    assert failed.value.code == 7 and not (tmp_path / "never").exists()
    assert "[1/2] " in capfd.readouterr().out


def test_sigterm_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)"
    )
    monkeypatch.setattr(Run, "words", property(lambda run: ["-c", run.experiment]))
    monkeypatch.setattr(train_runs, "CHECKOUT", tmp_path)
    with pytest.raises(TrainingFailed) as failed:
        train_all([run_of(tmp_path / "run", code)])
    assert failed.value.code == 143


def test_description_counts_a_repeated_step_once(tmp_path: Path) -> None:
    lines = [{"step": 5, "seconds": 2.0}, {"step": 10, "seconds": 3.0}, {"step": 10, "seconds": 4.0}, {"step": 10}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"training": {"batch_size": 16}}))
    origin = {"device": "Abacus", "device_count": 2, "platform": "cpu", "git_revision": "abc"}
    (tmp_path / "provenance.jsonl").write_text(json.dumps(origin) + "\n")
    described = describe_run(Run(name="r", experiment="tiny", folder=tmp_path, seed=0, flags=("--a", "b c")))
    assert described["seconds"] == 6.0 and described["samples"] == 160
    assert described["device"] == "Abacus, 2 cpu device(s)" and described["git_revision"] == "abc"
    assert described["command"].startswith(f"python train.py tiny --run-dir {tmp_path.name} --training.seed 0 ")
    assert described["command"].endswith("--a 'b c'") and described["flags"] == ["--a", "b c"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["large"], "'large': no such budget; there are: cpu, full, quick"),
        (["quick", "--experiments", "sd15"], "--experiments sd15: no row of a table; there are: tiny, "),
        (["quick", "--seeds", "1", "1"], "--seeds: one is named twice"),
        (["quick", "--seeds", "-1"], "--seeds -1: must be 0 or more"),
        (["quick", "--num-products", "0"], "--num-products and --batch-size must be at least 1"),
        (["quick", "--judge", "nowhere"], "--judge nowhere: no such folder"),
        (["quick", "--steps", "3"], "Unrecognized"),
        (["quick", "--output-dir", "/dev/null/x"], "cannot be made"),
    ],
)
def test_one_line_for_bad_input(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == 2 and main(["--help"]) == 0
    assert "cpu    4 rows x 3 seeds, 128 products" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["quick", "--help"])
    assert not ended.value.code and "--experiments" in capsys.readouterr().out


def test_a_training_that_fails_gives_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Run, "words", property(lambda run: ["-c", "raise SystemExit(143)"]))
    assert main(["quick", "--output-dir", str(tmp_path)]) == 143
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.rstrip().endswith("ended with exit code 143")
    assert not (tmp_path / "table.json").exists()
