"""Many cases: each once, whatever happens; the same on any number of devices and processes; a bad one is one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from dtc_jax.data.images import InputError
from dtc_jax.data.manifest import Case
from dtc_jax.inference import run_jobs
from dtc_jax.inference.batches import choose_batch
from dtc_jax.inference.command import main
from dtc_jax.inference.jobs import jobs_in_folder, process_share
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.results import ResultsLog, read_results
from tests.inference.compilations import compilations
from tests.inference.pictures import entry, pixels, write_manifest, write_pictures

ROOT = Path(__file__).resolve().parents[2]


def _results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def _flags(folder: Path, model_folder: Path, *more: str, batch_size: int = 1) -> list[str]:
    where = ["--output-dir", str(folder / "out"), "--checkpoint", str(model_folder)]
    return ["--manifest", str(folder / "cases.jsonl"), *where, "--batch-size", str(batch_size), *more]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are written."""
    names: list[str] = []
    original = run_jobs.write_image

    def write(path: Path, *arguments: object) -> None:
        names.append(path.name)
        original(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run_jobs, "write_image", write)
    return names


def test_what_is_done_of_the_same_inputs_and_settings_is_not_done_again(
    tmp_path: Path, model_folder: Path, made: list[str]
) -> None:
    write_pictures(tmp_path, references=2)
    write_manifest(tmp_path, entry("a"), entry("b", reference=1, seed=3), entry("c"))
    flags, out = _flags(tmp_path, model_folder), tmp_path / "out"

    def again(*more: str) -> list[str]:
        made.clear()
        assert main([*flags, *more]) == 0
        return sorted(made)

    assert again() == ["a.png", "b.png", "c.png"]
    lines = _results(out)
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert [line["seed"] for line in lines] == [0, 3, 0]
    assert lines[0]["output"] == "a.png" and lines[0]["seconds"] > 0
    assert lines[0]["settings"]["num_inference_steps"] == 2 and lines[0]["settings"]["regions"] == "each"
    assert again() == []
    (out / "b.png").unlink()
    assert again() == ["b.png"], "what is gone"
    Image.new("RGB", (20, 20), (9, 99, 30)).save(tmp_path / "products" / "1.png")
    assert again() == ["b.png"], "what has another reference"
    write_manifest(tmp_path, entry("a", seed=8), entry("b", reference=1, seed=3), entry("c"), entry("d"))
    assert again() == ["a.png", "d.png"], "what has another seed, and what is new"
    assert again("--feather", "2") == ["a.png", "b.png", "c.png", "d.png"], "other settings"
    with (out / "results.jsonl").open("ab") as file:
        file.write(b'{"output": "e.png", "fi')
    assert again("--feather", "2") == [], "half a line"
    assert [line["id"] for line in _results(out)] == ["a", "b", "c", "d"]


def test_several_images_of_each_and_resuming_among_them(tmp_path: Path, model_folder: Path, made: list[str]) -> None:
    write_pictures(tmp_path)
    write_manifest(tmp_path, entry("a"))
    flags, out = _flags(tmp_path, model_folder, "--num-images", "3"), tmp_path / "out"
    assert main(flags) == 0
    three = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert sorted(three) == ["a-00.png", "a-01.png", "a-02.png"] and len(set(three.values())) == 3
    (out / "a-01.png").unlink()
    made.clear()
    assert main(flags) == 0
    assert made == ["a-01.png"] and (out / "a-01.png").read_bytes() == three["a-01.png"]
    assert main(_flags(tmp_path, model_folder)) == 0
    assert (out / "a.png").read_bytes() == three["a-00.png"], "image 0, however many are made"


def test_a_bad_case_is_reported_and_the_others_are_made(
    tmp_path: Path, model_folder: Path, capfd: pytest.CaptureFixture[str], made: list[str]
) -> None:
    write_pictures(tmp_path)
    (tmp_path / "text.png").write_text("text")
    bad = [
        entry("absent", scene=7),
        entry("text", scene=0, reference=0) | {"reference": "text.png"},
        entry("size") | {"mask": "products/0.png"},
        {"id": "box", "scene": "scene-0.png", "reference": "products/0.png", "box": [0, 0, 99, 9]},
    ]
    write_manifest(tmp_path, entry("a"), *bad, entry("z"))
    assert main(_flags(tmp_path, model_folder)) == 1
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 5 and "Traceback" not in captured.err
    assert captured.out == f"2 images painted, 0 there already: {tmp_path / 'out' / 'results.jsonl'}\n"
    for number, what in [(2, "no such file"), (3, "not an image"), (4, "20x20"), (5, "box 0,0,99,9")]:
        assert sum(f"line {number}: " in line and what in line for line in lines) == 1, (number, lines)
    assert lines[-1].startswith("4 of 6 cases")
    assert sorted(made) == ["a.png", "z.png"]
    assert main(_flags(tmp_path, model_folder)) == 1
    assert capfd.readouterr().out.startswith("0 images painted, 2 there already: ")
    results = _results(tmp_path / "out")
    assert [line["id"] for line in results] == ["a", "absent", "text", "size", "box", "z"]
    assert "no such file" in results[1]["error"] and "error" not in results[5]
    write_manifest(tmp_path, entry("a"), entry("size"))
    made.clear()
    assert main(_flags(tmp_path, model_folder)) == 0
    assert made == ["size.png"] and "error" not in read_results(tmp_path / "out")["size.png"]


def test_a_folder_of_products(tmp_path: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, scenes=2, references=2)
    Image.new("RGB", (9, 9)).save(tmp_path / "products" / "1.jpg")
    scene, model = str(tmp_path / "scene-0.png"), ["--checkpoint", str(model_folder), "--batch-size", "1"]
    flags = ["--scene", scene, "--box", "10,5,30,22", "--reference", str(tmp_path / "products"), *model]
    assert main([*flags, "--output-dir", str(tmp_path / "one")]) == 0
    assert sorted(path.name for path in (tmp_path / "one").glob("*.png")) == ["0.png", "1.jpg.png", "1.png.png"]
    (tmp_path / "products" / "1.jpg").unlink()
    write_manifest(tmp_path, *(entry(f"s{number}", number) | {"reference": "products"} for number in range(2)))
    assert main(_flags(tmp_path, model_folder)) == 0
    names = ["s0-0.png", "s0-1.png", "s1-0.png", "s1-1.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "s0-0.png"), pixels(tmp_path / "one" / "0.png"))
    capfd.readouterr()
    (tmp_path / "empty").mkdir()
    for more, message in [
        (["--output", "x.png"], "--output-dir"),
        ([], "--output-dir is missing"),
        (["--output-dir", str(tmp_path / "products"), "--reference", str(tmp_path / "empty")], "without images"),
        (["--output-dir", str(tmp_path / "products")], "is an input"),
        (["--output-dir", str(tmp_path / "x"), "--num-processes", "2"], "--process-id"),
        (["--output-dir", str(tmp_path / "x"), "--num-processes", "2", "--process-id", "2"], "--process-id 2"),
    ]:
        assert main([*flags, *more]) == 2
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_inputs_that_are_no_files_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    strange = [tmp_path / "loop.png", "file:///a\0b.png", tmp_path / ("x" * 300), f"file://{tmp_path}/loop.png"]
    cases = [Case(id=f"case-{number}", scene=name, reference=name) for number, name in enumerate(strange)]
    assert len(jobs_in_folder(cases, tmp_path, 1, 0)) == 4
    for name in (tmp_path / "link.png", f"file://{tmp_path}/link.png"):
        with pytest.raises(InputError, match=r"a\.png: is an input"):
            jobs_in_folder([*cases, Case(id="a", scene=name, reference=None)], tmp_path, 1, 0)


def test_processes_share_the_cases_and_put_their_results_together(
    tmp_path: Path, model_folder: Path, made: list[str]
) -> None:
    write_pictures(tmp_path)
    write_manifest(tmp_path, *(entry(name) for name in "abcde"))
    shares = []
    for process in (1, 0):
        made.clear()
        share = ["--num-processes", "2", "--process-id", str(process)]
        assert main(_flags(tmp_path, model_folder, *share)) == 0
        shares.append(sorted(made))
    assert shares == [["b.png", "d.png"], ["a.png", "c.png", "e.png"]]
    assert [line["id"] for line in _results(tmp_path / "out")] == list("abcde")
    made.clear()
    assert main(_flags(tmp_path, model_folder)) == 0
    assert made == []


def test_merging_misses_no_line_that_comes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (ResultsLog(tmp_path, index, 2) for index in range(2))
    first.add({"output": "a.png"})
    replace, late = os.replace, [{"output": "b.png"}]

    def slow(*paths: Path) -> None:
        if late:
            second.add(late.pop())
        replace(*paths)

    monkeypatch.setattr(os, "replace", slow)
    first.merge(["b.png", "a.png"])
    assert [line["output"] for line in _results(tmp_path)] == ["b.png", "a.png"]


def test_what_started_the_process_says_its_share() -> None:
    assert process_share(None, None, {}) == (0, 1)
    assert process_share(3, 1, {}) == (1, 3)
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "n", "SLURM_LOCALID": "0"}
    assert process_share(None, None, slurm | {"CUDA_VISIBLE_DEVICES": ""}) == (2, 4)


def test_batches_of_several_devices(pipeline: Pipeline) -> None:
    """On eight devices what one makes; the last batch is filled up, and regions and seeds stay with their cases."""
    random = np.random.default_rng(0)
    cases = []
    for number in range(9):
        scene = random.integers(0, 256, (30, 42, 3), np.uint8)
        prepared = pipeline.prepare(scene, None, scene[:9, :9] // 2, box=(5, 6, 25, 20 + number % 3))
        cases.append((prepared, 7 + number // 4, number % 4))
    alone = np.stack(list(pipeline.generate(cases)))
    batches = list(pipeline.generate_batches(cases, batch_size=8, devices=jax.local_devices()))
    assert [len(batch) for batch in batches] == [8, 1]
    together = np.stack([image for batch in batches for image in batch])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert min(np.abs(alone[i] - alone[j]).max() for i in range(9) for j in range(i)) > 1e-2


def test_manifests_of_any_length_and_photos_of_any_size(
    tmp_path: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second is longer, by another last batch, and has another photo; nothing is compiled for it."""
    counts = []
    for cases in (9, 10):
        folder = tmp_path / str(cases)
        folder.mkdir()
        write_pictures(folder, scenes=2)
        Image.new("RGB", (70, 9 + cases), (90, 20, cases)).save(folder / "scene-1.png")
        lines = [entry(str(number), seed=number) for number in range(cases - 1)]
        last = {"id": "last", "scene": "scene-1.png", "reference": "products/0.png", "box": [2, 3, 60, 9]}
        write_manifest(folder, *lines, last)
        flags = ["--manifest", str(folder / "cases.jsonl"), "--output-dir", str(folder / "out")]
        with compilations(caplog) as found:
            assert main([*flags, "--checkpoint", str(model_folder), "--batch-size", "8"]) == 0
        assert len(list((folder / "out").glob("*.png"))) == cases
        counts.append(found)
    assert counts[1] == []


def test_choose_batch() -> None:
    devices = jax.local_devices()
    assert len(devices) == 8
    for images, wanted, expected in [
        (100, None, (8, 8)),
        (100, 1, (1, 1)),
        (100, 3, (3, 3)),
        (100, 12, (16, 8)),
        (9, 24, (16, 8)),
        (17, 24, (24, 8)),
        (3, None, (4, 4)),
        (5, None, (8, 8)),
        (3, 3, (3, 3)),
    ]:
        size, working = choose_batch(images, wanted, devices)
        assert (size, len(working)) == expected, (images, wanted)
    assert choose_batch(0, None, devices[:1]) == (1, devices[:1])


def test_few_images_on_an_accelerator_make_few_programs() -> None:
    accelerator: Any = SimpleNamespace(platform="gpu")
    sizes = [choose_batch(images, None, [accelerator])[0] for images in range(1, 9)]
    assert sizes == [1, 2, 4, 4, 4, 4, 4, 4]
    assert [choose_batch(images, 6, [accelerator])[0] for images in range(1, 9)] == [1, 2, 4, 4, 6, 6, 6, 6]


def test_bad_numbers_of_a_batch(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="batch_size"):
        list(pipeline.generate([], batch_size=0))


def test_killed_at_any_time_every_image_is_there_once(tmp_path: Path, model_folder: Path) -> None:
    """A real process, killed as soon as some images are there, again and again; then one that may finish."""
    write_pictures(tmp_path)
    names = [f"case-{number:03d}" for number in range(60)]
    write_manifest(tmp_path, *(entry(name, seed=number % 7) for number, name in enumerate(names)))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "sample.py"), *_flags(tmp_path, model_folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    seen: dict[str, int] = {}
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(out.glob("*.png"))) > len(seen) + 5:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
        if process.stderr:
            process.stderr.close()
        recorded = read_results(out)
        now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png") if path.name in recorded}
        assert all(now.get(name) == changed for name, changed in seen.items()), "made again"
        assert seen.keys() < now.keys()
        seen = now
    assert len(seen) < len(names)
    assert main(_flags(tmp_path, model_folder)) == 0
    assert sorted(path.name for path in out.iterdir()) == [*(f"{name}.png" for name in names), "results.jsonl"]
    assert [line["id"] for line in _results(out)] == names
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in seen.items()), "made again"
    for path in out.glob("*.png"):
        pixels(path)
