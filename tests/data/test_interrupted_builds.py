"""Builds that are killed, interrupted, continued, or made by somebody else: the same records."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.config_base import ConfigError
from dtc_jax.data.builders.manifest_source import ManifestSource
from dtc_jax.data.records import find_data_set
from tests.data import files
from tests.data.built import assert_same_records, build, records

KILLED = """
import os, signal, sys
from dtc_jax.data.builders.product_pairs import ProductPairs, ProductPairsConfig
done = 0
def progress(count, total):
    global done
    done += count
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    config = ProductPairsConfig(name="default", source=sys.argv[1], size=64, workers=2, progress=progress)
    ProductPairs(data_dir=sys.argv[2], config=config).download_and_prepare()
"""


@pytest.mark.parametrize("after", [64, 110], ids=["while records are made", "before they are written"])
def test_a_killed_build_looks_unfinished_and_continues(tmp_path: Path, after: int) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=110, test=3)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(manifest), str(tmp_path / "out"), str(after)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.wait(timeout=120) == -signal.SIGKILL
    with pytest.raises(ConfigError, match="did not finish"):
        find_data_set(tmp_path / "out")
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("train-00000[01].npz")}
    assert len(parts) == 2
    for _ in range(200):  # the workers notice, and end
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlived the process that started them")

    # A part is there whole or not at all; this one is as if power had failed before its bytes were on the disk.
    first, second = sorted(parts)
    second.write_bytes(second.read_bytes()[:1000])
    seen = []
    original = ManifestSource.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ManifestSource, "open", lambda self, item: seen.append(item.id) or original(self, item))
        assert build("product_pairs", manifest, tmp_path / "out") == 0
    assert "case-0" not in seen, "what was made is not made again"
    assert "case-40" in seen, "a damaged part is"
    assert first.parent.name.startswith("incomplete.") and not first.parent.exists()
    assert build("product_pairs", manifest, tmp_path / "whole") == 0
    assert_same_records(tmp_path / "out", tmp_path / "whole")


def test_ctrl_c_while_workers_start_is_one_line(tmp_path: Path) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=70, test=3)
    flags = ["--source", str(manifest), "--output", str(tmp_path / "out"), "--workers", "2", "--size", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dtc_jax.data.build", "product_pairs", *flags],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        # A shell starts what runs in its background with Ctrl-C ignored, and children take that over.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def is_worker(child: str) -> bool:
        try:
            return "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
        except OSError:  # it has ended
            return False

    for _ in range(1200):
        if sum(map(is_worker, children.read_text().split())) == 2:
            break
        time.sleep(0.05)
    else:
        pytest.fail("no workers were started")
    time.sleep(0.3)  # they have what they need from the process that started them, and import
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=120)[1] == "interrupted; the same command continues\n"
    assert process.returncode == 130


def test_parts_of_other_options_are_not_continued(tmp_path: Path) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=4, test=1)
    last = tmp_path / "in" / "scenes" / "3.png"
    last.unlink()
    assert build("product_pairs", manifest, tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").rglob("train*.npz")] == ["train-000000.npz"]
    files.save(last, files.photo(3))
    assert build("product_pairs", manifest, tmp_path / "out", "--size", "32") == 0
    assert {sample.scene.shape for sample in records(tmp_path / "out")} == {(32, 32, 3)}


def test_two_builds_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    folder = tmp_path / "out" / "product_pairs" / "default"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert build("product_pairs", manifest, tmp_path / "out") == 2
    assert "another build is at work" in capsys.readouterr().err


def test_beam_makes_the_same_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=7)
    (tmp_path / "in" / "scenes" / "1.png").unlink()
    flags = ("--beam", "runner=DirectRunner,direct_num_workers=1")
    if importlib.util.find_spec("apache_beam") is None:
        assert build("product_pairs", manifest, tmp_path / "beam", *flags) == 2
        assert "pip install apache-beam" in capsys.readouterr().err
        pytest.skip("Apache Beam is not installed; .ci/run installs it and runs this test")
    for name, more in (("beam", flags), ("plain", ())):
        assert build("product_pairs", manifest, tmp_path / name, *more) == 0
        assert find_data_set(tmp_path / name).metadata["num_broken"] == 1
    for split in ("train", "test"):
        for one, other in zip(records(tmp_path / "beam", split), records(tmp_path / "plain", split), strict=True):
            assert one.id == other.id
            np.testing.assert_array_equal(one.scene, other.scene)
