"""The training loop: mesh, parameters, step, checkpoints, in the order in which they happen."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.inference.runtime import release_freed_memory
from dtc_jax.training.barrier import wait_for_all
from dtc_jax.training.broken_records import BrokenLog
from dtc_jax.training.checkpoints import Checkpoints, abstract_state
from dtc_jax.training.class_images import prepare_product
from dtc_jax.training.flops import train_flops_per_image
from dtc_jax.training.grids import check_sampling, write_sample_grid
from dtc_jax.training.hardware import accelerator
from dtc_jax.training.initial import initial_params
from dtc_jax.training.params import split_trainable
from dtc_jax.training.placement import place, stored_frozen, to_host
from dtc_jax.training.profiling import Profile
from dtc_jax.training.progress import Progress
from dtc_jax.training.provenance import append_provenance
from dtc_jax.training.rolling import make_evaluation
from dtc_jax.training.run_directory import (
    data_notes,
    has_checkpoint,
    networks_held,
    only_run,
    prepare_run_dir,
    starting_folders,
)
from dtc_jax.training.sharding import check_batch, make_mesh
from dtc_jax.training.source import make_source
from dtc_jax.training.step import TrainState, check_finite
from dtc_jax.training.stopping import Stopped, StopRequest
from dtc_jax.weights.model_folder import flatten_params, is_model_folder, save_model_folder, unflatten_params

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
        CheckpointError: a checkpoint could not be written or read.
        NonFiniteError: `training.max_nonfinite_steps` steps in a row came to nothing; the checkpoints stay.
        Stopped: on SIGTERM or Ctrl-C, after a step and its checkpoint.
        OSError: another file of the run could not be written.
    """
    with only_run(run_dir) if jax.process_index() == 0 else nullcontext():
        return _train(config, run_dir, init_from, devices)


def checked_mesh(config: ExperimentConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a run trains on.

    Args:
        config: The experiment.
        devices: Where to train; None takes all devices of all processes.

    Raises:
        ConfigError: what can be told before the data are looked at: the devices cannot be divided so, or not share the
            batch, or the samples of the grids cannot be drawn as the configuration says.
    """
    mesh = make_mesh(config.training.fsdp_devices, devices, config.training.slices)
    check_batch(config.training, mesh)
    check_sampling(config)
    return mesh


def _train(
    config: ExperimentConfig, run_dir: Path, init_from: Sequence[Path], devices: Sequence[jax.Device] | None
) -> PyTree:
    main_process = jax.process_index() == 0
    resumed = has_checkpoint(run_dir)
    if not init_from and (init_from := starting_folders(run_dir)):
        logger.info("starts again from %s", ", ".join(map(str, init_from)))
    mesh = checked_mesh(config, devices)
    config = prepare_product(config, run_dir, init_from, devices)
    source = make_source(config, mesh, BrokenLog(run_dir))
    # Once it is known that there is something to train on.
    prepare_run_dir(config, run_dir, main_process, resumed, init_from)
    key = jax.random.key(config.training.seed)

    checkpoints = open_checkpoints(config, run_dir)
    held = networks_held(run_dir) if resumed else None
    params = flatten_params(initial_params(config, jax.random.fold_in(key, 0), init_from, held))
    trainable, frozen = split_trainable(params, config.training.trainable)
    # The split ones are the only ones left: `place` lets each host array go.
    del params
    if resumed:
        frozen = stored_frozen(run_dir, frozen)
    # What an option that is new to the run asks for is kept beside the rest.
    kept = held is not None and held.issuperset(path.split("/")[0] for path in frozen)
    train_step, state, frozen = place(config, mesh, trainable, frozen)
    evaluate = make_evaluation(config, mesh) if config.training.evaluate_every else None
    logger.info(
        "%s: %s trainable and %s frozen parameters on %d %s device(s), mesh %s",
        config.name,
        f"{sum(leaf.size for leaf in state.params.values()):,}",
        f"{sum(leaf.size for leaf in frozen.values()):,}",
        mesh.size,
        jax.devices()[0].platform,
        dict(mesh.shape),
    )

    if frozen and not kept:
        whole = to_host(frozen, mesh, keep=main_process)
        if main_process:
            save_model_folder(run_dir / "frozen", config, whole, notes=data_notes(config, run_dir))
        del whole
    with ExitStack() as closing:
        stop = closing.enter_context(StopRequest())
        # Whatever happens: an interrupted run finishes the checkpoint that it is writing.
        closing.callback(checkpoints.close)
        closing.callback(source.close)
        if resumed:
            state, start = resume(checkpoints, state, config)
            logger.info("resumed from step %d", start)
        else:
            start = 0

        total, due = config.training.steps, Due(config)
        if main_process:
            append_provenance(run_dir, start)
            if start < total and is_model_folder(run_dir / "model"):
                # What an earlier, shorter run exported; the checkpoints hold the same and go on.
                shutil.rmtree(run_dir / "model")
        progress = open_progress(config, run_dir, start, mesh)
        closing.callback(progress.close)
        profile = Profile(run_dir, config.training)
        closing.callback(profile.close)
        noise_key = jax.random.fold_in(key, 1)

        for step in range(start, total):
            profile.before(step + 1, state)
            batch = source(step)
            if step == start:
                # Ahead of the first step, for which the memory that the compiler has freed may be needed.
                train_step.lower(state, frozen, batch, noise_key).compile()
                release_freed_memory()
                wait_for_all(f"{config.name} is compiled for step {start}")
            state, metrics = train_step(state, frozen, batch, noise_key)
            # Numbers of the last line are fetched only after this step has been dispatched: no wait in the loop.
            check_finite(progress.flush(), config)
            progress.advance()
            done = step + 1
            profile.after(done, metrics)
            if due.line(done):
                progress.hold(done, metrics)
            stopping = stop.reached(done)
            if not (due.anything(done) or stopping):
                continue

            # The line first: a run that is killed after the checkpoint resumes behind it.
            check_finite(progress.flush(), config)
            jax.block_until_ready(metrics)
            checkpoints.check()
            with progress.paused():
                scores = None
                # A preempted run has little time: what was due is left out, and the checkpoint comes first.
                if evaluate is not None and due.evaluation(done) and not stopping:
                    scores = evaluate(state.averaged, frozen)
                    progress.report_evaluation(done, scores)
                if due.grid(done) and not stopping:
                    averaged = unflatten_params({**frozen, **state.averaged})
                    path = run_dir / "samples" / f"{done:08d}.png"
                    grid = write_sample_grid(config, averaged, path, mesh, write=main_process)
                    progress.report_grid(done, grid)
                if due.checkpoint(done) or stopping:
                    checkpoints.save(state, config, done, scores)
            if stopping:
                closing.close()  # the checkpoint is complete before anybody hears that the run has stopped
                raise Stopped(done, stop.signal_number)
        best = checkpoints.best_step()
        if best is not None:
            logger.info("best by %s: %s", config.training.best_metric, run_dir / "checkpoints" / str(best))

    final = to_host({**frozen, **state.averaged}, mesh, keep=main_process)
    if main_process:
        save_model_folder(run_dir / "model", config, final, notes=data_notes(config, run_dir))
        logger.info("finished: %s", run_dir / "model")
    # The next stage reads this folder on every process.
    multihost_utils.sync_global_devices("model saved")
    if stop.unanswered:
        # No other stage is begun.
        raise Stopped(total, stop.signal_number)
    return final


@dataclass(frozen=True)
class Due:
    """What there is to do after a step; the last one has its line and its checkpoint in any case."""

    config: ExperimentConfig

    def line(self, done: int) -> bool:
        """A line of metrics."""
        return done % self.config.training.log_every == 0 or done == self.config.training.steps

    def checkpoint(self, done: int) -> bool:
        """A checkpoint."""
        return done % self.config.training.checkpoint_every == 0 or done == self.config.training.steps

    def evaluation(self, done: int) -> bool:
        """A rolling evaluation."""
        every = self.config.training.evaluate_every
        return every > 0 and done % every == 0

    def grid(self, done: int) -> bool:
        """A sample grid."""
        every = self.config.training.sample_every
        return self.config.stage == "diffusion" and every > 0 and done % every == 0

    def anything(self, done: int) -> bool:
        """Anything but a line: training pauses."""
        return self.checkpoint(done) or self.evaluation(done) or self.grid(done)


def open_checkpoints(config: ExperimentConfig, run_dir: Path) -> Checkpoints:
    """The run's checkpoints, kept as the configuration says."""
    training = config.training
    return Checkpoints(run_dir, training.keep_checkpoints, training.keep_best, training.best_metric)


def resume(checkpoints: Checkpoints, state: TrainState, config: ExperimentConfig) -> tuple[TrainState, int]:
    """The newest checkpoint in the place of a fresh state, whose memory it takes."""
    target = abstract_state(state, jax.tree.map(lambda leaf: leaf.sharding, state))
    jax.tree.map(lambda leaf: leaf.delete(), state)
    return checkpoints.restore_newest(target, config)


def open_progress(config: ExperimentConfig, run_dir: Path, start: int, mesh: Mesh) -> Progress:
    """The run's lines; with MFU where the peak of the devices is known."""
    training = config.training
    known = accelerator(mesh.devices.flat[0].device_kind)
    share = None if known is None else train_flops_per_image(config) / (known.peak_flops * mesh.size)
    return Progress(
        run_dir,
        training.steps,
        start,
        training.batch_size,
        write=jax.process_index() == 0,
        flops_share=share,
        tensorboard=training.tensorboard,
    )
