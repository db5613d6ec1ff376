"""The command line of the tables: `python -m dtc_jax.tables BUDGET [--output-dir DIR]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError
from dtc_jax.data.images import InputError, write_image
from dtc_jax.data.sheets import contact_sheet
from dtc_jax.evaluation.report import write_json
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.tables.budgets import BUDGETS, DIFFUSE_TO_CHOOSE, ROWS, Budget
from dtc_jax.tables.figures import figures_file, gather_figures, write_figures
from dtc_jax.tables.measure import Measured, measure_runs
from dtc_jax.tables.report import choose_pictures, lead, lead_line, make_rows, rows_table
from dtc_jax.tables.train_runs import (
    CHECKOUT,
    Run,
    TrainingFailed,
    describe_run,
    judge_run,
    row_runs,
    shared_runs,
    train_all,
    write_frozen,
)
from dtc_jax.weights.model_folder import ModelFolderError

_PROGRAM = "python -m dtc_jax.tables"
_PICTURES = 5
"""Products that were told from their distractors on the sheet, and as many that were not."""


@dataclass(frozen=True, kw_only=True)
class TableArguments:
    """Train the rows of a table at equal budget, measure them on unseen products, write the table.

    Runs that are finished are not trained again, an unfinished one goes on from its newest checkpoint. Figures of every
    run are kept in a file of their own.
    """

    output_dir: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: runs/table-BUDGET)")] = None
    """Folder for the runs, their figures, table.json, table.md and sheets of pictures; made if absent."""
    experiments: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: the budget's)")] = ()
    """Rows of the table."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="(default: the budget's)")] = ()
    """Seeds of the trainings."""
    num_products: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the budget's)")] = None
    """Unseen products to measure on."""
    figures: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: OUTPUT_DIR/figures)")] = None
    """Folder of the figures of single runs: those that are there are neither trained nor measured again, so that
    several machines can each make some and one puts them together."""
    judge: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: trained with another seed)")] = None
    """Run or model folder with the VGG that distances are measured with: one for all runs of a table."""
    batch_size: int = 32
    """Products at a time; the figures do not depend on it."""


def usage() -> str:
    """What `--help` prints without a budget."""
    lines = [f"usage: {_PROGRAM} BUDGET [--output-dir DIR] [--experiments NAME ...] [--seeds SEED ...]", "", "budgets:"]
    lines += [
        f"  {name:6} {len(one.experiments)} rows x {len(one.seeds)} seeds, {one.num_products} products; every run: "
        + " ".join(one.flags)
        for name, one in BUDGETS.items()
    ]
    return "\n".join([*lines, "", f"{_PROGRAM} BUDGET --help explains the flags."])


@reports_errors(InputError, ModelFolderError, ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 after an error of use, or that of a training that failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in BUDGETS:
        raise UsageError(f"{words[0]!r}: no such budget; there are: {', '.join(BUDGETS)}")
    arguments = parse_arguments(TableArguments, words[1:], f"{_PROGRAM} {words[0]}")
    try:
        run(words[0], arguments)
    except TrainingFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


def run(name: str, arguments: TableArguments) -> dict[str, Any]:
    """Train what is not trained, measure, write and print; returns what table.json holds.

    Raises:
        UsageError: an unknown experiment, numbers out of range, or no checkout to train in.
        TrainingFailed: a training that did not end well.
        InputError: a file that cannot be written.
    """
    budget = chosen_budget(BUDGETS[name], arguments)
    if not (CHECKOUT / "train.py").is_file():
        raise UsageError(f"{CHECKOUT} has no train.py: tables are made in a checkout of the repository")
    output_dir = (arguments.output_dir or Path("runs") / f"table-{name}").absolute()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {output_dir}: cannot be made ({error.strerror})") from None
    figures_dir = output_dir / "figures" if arguments.figures is None else arguments.figures
    runs = row_runs(budget, output_dir)
    left = [one for one in runs if not figures_file(figures_dir, one.name).is_file()]
    measured = None
    if left:
        judge = train_runs_and_judge(budget, output_dir, left, arguments.judge)
        enable_compilation_cache()
        measured = measure_runs(
            {one.name: one.folder for one in left},
            judge,
            samplings=budget.samplings,
            num_products=budget.num_products,
            batch_size=arguments.batch_size,
            shown=tuple(first_runs(left).values()),
            num_shown=budget.num_products,
        )
        write_figures(figures_dir, measured, {one.name: describe_run(one) for one in left})
    gathered = gather_figures(figures_dir, runs, budget.samplings)
    of_experiment = {row: [one.name for one in runs if one.experiment == row] for row in budget.experiments}
    rows = {sampling: make_rows(figures, of_experiment) for sampling, figures in gathered.pop("figures").items()}
    report = {
        "budget": name,
        "seeds": list(budget.seeds),
        "rows": rows,
        "lead": {sampling: lead(own) for sampling, own in rows.items()},
        **gathered,
    }
    page = table_page(report)
    write_json(output_dir / "table.json", report)
    (output_dir / "table.md").write_text(page)
    print(f"\n{page}\ntable:   {output_dir / 'table.md'}, table.json\nfigures: {figures_dir}")
    if measured is not None:
        for number, sampling in enumerate(budget.samplings):
            sheet = output_dir / f"sheet-{number}.png"
            write_image(sheet, picture_sheet(measured, first_runs(left), sampling))
            print(f"sheet:   {sheet} ({sampling})")
    return report


def train_runs_and_judge(budget: Budget, output_dir: Path, runs: list[Run], judge: Path | None) -> Path:
    """Train these runs and what they need; returns the folder of the VGG that figures are measured with."""
    shared = shared_runs(budget, output_dir)
    if not shared:
        write_frozen(output_dir)
    own_judge = judge_run(budget, output_dir)
    # All trainings come before anything is computed here: this process must not hold the accelerator meanwhile.
    train_all([*([own_judge] if judge is None else []), *shared, *runs])
    return judge or own_judge.folder


def first_runs(runs: list[Run]) -> dict[str, str]:
    """Of each experiment the first of these runs."""
    first: dict[str, str] = {}
    for one in runs:
        first.setdefault(one.experiment, one.name)
    return first


def chosen_budget(budget: Budget, arguments: TableArguments) -> Budget:
    """The budget with what the command line changes.

    Raises:
        UsageError: an unknown experiment, a seed twice, too few products, or no such judge.
    """
    unknown = [one for one in arguments.experiments if one not in ROWS]
    if unknown:
        raise UsageError(f"--experiments {unknown[0]}: no row of a table; there are: {', '.join(ROWS)}")
    for flag, values in (("--experiments", arguments.experiments), ("--seeds", arguments.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{flag}: one is named twice")
    if min(arguments.seeds, default=0) < 0:
        raise UsageError(f"--seeds {min(arguments.seeds)}: must be 0 or more")
    if arguments.judge is not None and not arguments.judge.is_dir():
        raise UsageError(f"--judge {arguments.judge}: no such folder")
    count = budget.num_products if arguments.num_products is None else arguments.num_products
    if count < 1 or arguments.batch_size < 1:
        raise UsageError("--num-products and --batch-size must be at least 1")
    return replace(
        budget,
        experiments=arguments.experiments or budget.experiments,
        seeds=arguments.seeds or budget.seeds,
        num_products=count,
    )


def table_page(report: dict[str, Any]) -> str:
    """table.md: a table for each sampling, what it shows, and what was run."""
    runs = report["runs"]
    parts = []
    for sampling, rows in report["rows"].items():
        parts += [f"Sampling: {sampling}", "", rows_table(rows), ""]
        if report["lead"][sampling] is not None:
            parts += [lead_line(report["lead"][sampling]), ""]
    if report["judges"] > 1:
        parts += ["Figures of feature networks are left out: the runs were measured with different ones.", ""]
    seconds = sum(one["seconds"] for one in runs.values())
    measuring = ", ".join(sorted({one["measured"]["device"] for one in runs.values()}))
    devices = ", ".join(sorted({one["device"] for one in runs.values()}))
    revisions = ", ".join(sorted({str(one["git_revision"])[:12] for one in runs.values()}))
    parts.append(
        f"{report['protocol']['num_products']} unseen products; seeds of training: {report['seeds']} (mean, lowest "
        f"to highest); {len(runs)} trainings in {seconds / 60:.0f} minutes on {devices}, at revision {revisions}; "
        f"measured on {measuring}."
    )
    return "\n".join(parts) + "\n"


def picture_sheet(measured: Measured, shown: dict[str, str], sampling: str) -> np.ndarray:
    """Products that the first row told from their distractors, and below them those that it did not.

    Args:
        measured: With the pictures of the runs.
        shown: {experiment: its run that is shown}.
        sampling: Of the results that are shown.
    """
    first = DIFFUSE_TO_CHOOSE if DIFFUSE_TO_CHOOSE in shown else next(iter(shown))
    found = measured.found[sampling]
    lines, labels = [], []
    for index in choose_pictures(found[shown[first]][: len(measured.pictures)], _PICTURES):
        picture = measured.pictures[index]
        results = [picture["results"][sampling][name] for name in shown.values()]
        mask = picture["mask"] * np.uint8(255)
        ends = [picture["scene"], mask, picture["reference"], picture["naive_paste"]]
        lines.append([*ends, *results, picture["truth"]])
        labels.append(f"product {index}\n{'told' if found[shown[first]][index] else 'not told'}")
    columns = ["scene", "mask", "reference", "naive paste", *(row.removeprefix("tiny_") for row in shown), "truth"]
    return np.asarray(contact_sheet(lines, columns, scale=2, row_labels=labels))
