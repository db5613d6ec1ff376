"""Two processes read what one does: the same rows of the same batches, each on the devices that it owns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.data.pipeline import stack
from tests.data import prepared
from tests.training.runs import ROOT, finish, free_port

READ = """
import sys
import jax, numpy as np
folder, output, port, processes, process, fsdp = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8 // int(processes))
jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
from dtc_jax import presets
from dtc_jax.config import DataConfig, ExperimentConfig, TrainingConfig
from dtc_jax.training.sharding import make_mesh
from dtc_jax.training.source import make_source
data = DataConfig(kind="records", path=folder, threads=2, max_broken=1.0)
config = ExperimentConfig(model=presets.test(), data=data, training=TrainingConfig(batch_size=16))
source = make_source(config, make_mesh(int(fsdp)))
parts = {}
for step in (4, 5):
    for name, values in source(step).items():
        for shard in values.addressable_shards:
            parts[f"{step} {name} {shard.index[0].start}"] = np.asarray(shard.data)
source.close()
np.savez(output, **parts)
"""


@pytest.mark.timeout(600)
def test_two_processes(tmp_path: Path) -> None:
    folder = prepared.write(tmp_path / "data", broken=(3,))
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READ, str(folder), str(tmp_path / f"{process}.npz"), port, "2", str(process), "4"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    finish(*processes)
    parts = [dict(np.load(tmp_path / f"{process}.npz")) for process in range(2)]
    # Two rows per device, four devices each.
    assert [len([name for name in part if "4 scene" in name]) for part in parts] == [4, 4]
    assert not parts[0].keys() & parts[1].keys()
    together = {**parts[0], **parts[1]}
    reader = prepared.reader(folder)
    for step in (4, 5):
        expected = stack([reader.training_sample(place) for place in range(16 * step, 16 * step + 16)])
        for name, values in expected.items():
            found = np.concatenate([together[f"{step} {name} {start}"] for start in range(0, 16, 2)])
            np.testing.assert_array_equal(found, values, err_msg=name)
