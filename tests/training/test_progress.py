"""What a run says of itself."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dtc_jax.training import progress as module
from dtc_jax.training.progress import Progress
from tests.training.small_disk import small_disk


class Clock:
    """Stands in for `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dtc_jax.train")
    progress = Progress(tmp_path, total_steps=100, start_step=0, batch_size=8, write=True)
    loss = float(np.float32(1) / np.float32(3))
    clock.now += 5
    progress.report(10, {"loss": loss})
    clock.now += 30
    progress.skip_time(20)
    progress.report(20, {"loss": 2 * loss})
    first, second = _lines(tmp_path)
    # Every digit: runs are compared by these numbers.
    assert (first["step"], first["loss"], first["images_per_second"]) == (10, loss, 16.0)
    assert (second["step"], second["loss"], second["images_per_second"]) == (20, 2 * loss, 8.0)
    assert "step 20/100  loss 0.6667  8.0 images/s  ETA 0:01:20" in caplog.messages[-1]


def test_speed_of_a_resumed_run(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(tmp_path, total_steps=100, start_step=50, batch_size=8, write=True)
    clock.now += 4
    progress.report(60, {})
    assert _lines(tmp_path)[0]["images_per_second"] == 20.0


def test_other_processes_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dtc_jax.train")
    Progress(tmp_path, total_steps=2, start_step=0, batch_size=1, write=False).report(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    assert not caplog.messages


def test_a_resumed_run_has_one_line_per_step(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    progress = Progress(tmp_path, total_steps=4, start_step=2, batch_size=1, write=True)
    clock.now += 1
    progress.report(3, {"loss": 3.0})
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_numbers_wait_on_the_devices(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(tmp_path, total_steps=100, start_step=0, batch_size=8, write=True)
    assert progress.flush() == {}
    progress.hold(10, {"loss": jnp.float32(0.5)})
    assert not (tmp_path / "metrics.jsonl").exists()
    clock.now += 1
    assert progress.flush() == {"loss": 0.5} and progress.flush() == {}
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(10, 0.5)]


def test_share_of_the_peak(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """1.5 TFLOP an image on four devices of 100 TFLOP/s."""
    caplog.set_level(logging.INFO, "dtc_jax.train")
    share = 1.5e12 / (4 * 100e12)
    progress = Progress(tmp_path, total_steps=100, start_step=0, batch_size=120, write=True, flops_share=share)
    clock.now += 1
    progress.report(1, {"loss": 1.0})
    assert "120.0 images/s  MFU 45.0%  ETA" in caplog.messages[-1]
    assert _lines(tmp_path)[0]["mfu"] == 0.45


def test_half_a_line_is_none(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(tmp_path, total_steps=100, start_step=0, batch_size=8, write=True)
    clock.now += 1
    progress.report(1, {"loss": 1.0})
    clock.now += 1
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with small_disk(len(whole) + 5), pytest.raises(OSError, match=r"File too large: .*metrics\.jsonl"):
        progress.report(2, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def _events(folder: Path) -> Iterator[Event]:
    """TFRecords: length, its checksum, data, its checksum."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(tmp_path, 100, start_step=50, batch_size=8, write=True, tensorboard=True)
    clock.now += 1
    progress.report(60, {"loss": 0.25})
    progress.report_evaluation(60, {"ssim": 0.5})
    progress.report_grid(60, Image.new("RGB", (4, 3), (255, 0, 0)))
    # On the disk at once: the run may be killed.
    first, session, *rest = _events(tmp_path / "tensorboard")
    assert first.file_version == "brain.Event:2"
    # What a killed run wrote after step 50 is not shown.
    assert session.session_log.status == SessionLog.START and session.step == 51
    values = {value.tag: (event.step, value) for event in rest for value in event.summary.value}
    assert {tag: (step, value.simple_value) for tag, (step, value) in values.items() if tag != "samples"} == {
        "train/loss": (60, 0.25),
        "speed/images_per_second": (60, 80.0),
        "speed/seconds": (60, 1.0),
        "evaluation/ssim": (60, 0.5),
    }
    step, picture = values["samples"]
    assert step == 60 and (picture.image.width, picture.image.height) == (4, 3)
    assert picture.image.encoded_image_string.startswith(b"\x89PNG")
    progress.close()
