"""All processes pass a place together, however late one of them comes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from dtc_jax.training.barrier import wait_for_all
from tests.training.runs import ROOT

PROGRAM = """
import sys, time
from pathlib import Path
import jax
from dtc_jax.training.barrier import wait_for_all
from tests.training.runs import ROOT

port, index, mark = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
# The first look at the devices waits for all, too.
jax.devices()
if index:
    time.sleep(2)
    mark.touch()
wait_for_all("here")
print(mark.exists())
"""


def test_the_late_one_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, port]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(tmp_path / "mark")], stdout=subprocess.PIPE, text=True, env=environment
        )
        for index in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["True", "True"]


def test_one_alone_goes_on() -> None:
    wait_for_all("nobody else comes")
