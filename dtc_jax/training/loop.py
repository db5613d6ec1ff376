"""The training loop: mesh, parameters, step, checkpoints, in the order in which they happen."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.training.broken_records import BrokenLog
from dtc_jax.training.checkpoints import Checkpoints, abstract_state
from dtc_jax.training.grids import write_sample_grid
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import Metrics
from dtc_jax.training.params import split_trainable
from dtc_jax.training.placement import place, stored_frozen, to_host
from dtc_jax.training.progress import Progress
from dtc_jax.training.provenance import append_provenance
from dtc_jax.training.run_directory import prepare_run_dir
from dtc_jax.training.sharding import check_batch, make_mesh
from dtc_jax.training.source import make_source
from dtc_jax.training.step import check_finite
from dtc_jax.weights.model_folder import flatten_params, save_model_folder, unflatten_params

logger = logging.getLogger("dtc_jax.train")


def train(
    config: ExperimentConfig,
    run_dir: Path,
    init_from: Sequence[Path] = (),
    devices: Sequence[jax.Device] | None = None,
) -> PyTree:
    """Train one stage to its last step, resuming from the newest checkpoint in `run_dir`.

    Args:
        config: The experiment.
        run_dir: Run folder; created, or resumed where it holds checkpoints.
        init_from: Model or run folders whose networks the parameters start from.
        devices: Where to train; None takes all devices of all processes.

    Returns:
        All parameters with the moving average in place of the trained ones, as a nested dict on the host of the first
        process; nothing on the others.

    Raises:
        ConfigError: the configuration cannot work, or `run_dir` belongs to another one.
        NonFiniteError: `training.max_nonfinite_steps` steps in a row came to nothing; the checkpoints stay.
    """
    main_process = jax.process_index() == 0
    mesh = make_mesh(config.training.fsdp_devices, devices, config.training.slices)
    check_batch(config.training, mesh)
    source = make_source(config, mesh, BrokenLog(run_dir))
    # Once it is known that there is something to train on: what is written here a later start must agree with.
    prepare_run_dir(config, run_dir, write=main_process)
    key = jax.random.key(config.training.seed)

    checkpoints = Checkpoints(run_dir, config.training.keep_checkpoints)
    latest = checkpoints.latest_step()
    resumed = latest is not None
    params = flatten_params(initial_params(config, jax.random.fold_in(key, 0), init_from, resumed))
    trainable, frozen = split_trainable(params, config.training.trainable)
    # The split ones are the only ones left: `place` lets each host array go.
    del params
    if latest is not None:
        frozen = stored_frozen(run_dir, frozen)
    train_step, state, frozen = place(config, mesh, trainable, frozen)
    logger.info(
        "%s: %s trainable and %s frozen parameters on %d %s device(s), mesh %s",
        config.name,
        f"{sum(leaf.size for leaf in state.params.values()):,}",
        f"{sum(leaf.size for leaf in frozen.values()):,}",
        mesh.size,
        jax.devices()[0].platform,
        dict(mesh.shape),
    )

    if frozen and latest is None:
        whole = to_host(frozen, mesh, keep=main_process)
        if main_process:
            save_model_folder(run_dir / "frozen", config, whole)
        del whole
    # Closed whatever happens: an interrupted run finishes the checkpoint that it is writing.
    with closing(checkpoints), closing(source):
        if latest is not None:
            target = abstract_state(state, jax.tree.map(lambda leaf: leaf.sharding, state))
            # Let go first: the devices need not hold the state twice.
            del state
            state = checkpoints.restore(target, latest)
            logger.info("resumed from step %d", latest)

        start, total = int(state.step), config.training.steps
        if main_process:
            append_provenance(run_dir, start)
            if start < total:
                # What an earlier, shorter run exported; the checkpoints hold the same and go on.
                shutil.rmtree(run_dir / "model", ignore_errors=True)
        progress = Progress(run_dir, total, start, config.training.batch_size, write=main_process)
        noise_key = jax.random.fold_in(key, 1)
        pending: tuple[int, Metrics] | None = None

        def report_pending() -> None:
            if pending is not None:
                numbers = {name: float(value) for name, value in pending[1].items()}
                progress.report(pending[0], numbers)
                check_finite(numbers, config)

        for step in range(start, total):
            state, metrics = train_step(state, frozen, source(step), noise_key)
            # Numbers of the last line are fetched only after this step has been dispatched: no wait in the loop.
            report_pending()
            done = step + 1
            pending = (done, metrics) if done % config.training.log_every == 0 or done == total else None
            saving = done % config.training.checkpoint_every == 0 or done == total
            if saving:
                # The line first: a run that is killed after the checkpoint resumes behind it.
                report_pending()
                pending = None
            began = time.perf_counter()
            if saving:
                checkpoints.save(state, config, done)
            if (
                config.stage == "diffusion"
                and config.training.sample_every
                and done % config.training.sample_every == 0
            ):
                averaged = unflatten_params({**frozen, **state.averaged})
                path = run_dir / "samples" / f"{done:08d}.png"
                write_sample_grid(config, averaged, path, mesh, write=main_process)
            progress.skip_time(time.perf_counter() - began)

    final = to_host({**frozen, **state.averaged}, mesh, keep=main_process)
    if main_process:
        save_model_folder(run_dir / "model", config, final)
        logger.info("finished: %s", run_dir / "model")
    # The next stage reads this folder on every process.
    multihost_utils.sync_global_devices("model saved")
    return final
