"""The command line of the tables: `python -m dtc_jax.tables BUDGET [--output-dir DIR]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.config import ConfigError
from dtc_jax.data.images import InputError, write_image
from dtc_jax.data.sheets import contact_sheet
from dtc_jax.evaluation.report import write_json
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.tables.budgets import BUDGETS, DIFFUSE_TO_CHOOSE, ROWS, Budget
from dtc_jax.tables.measure import Measured, measure_runs
from dtc_jax.tables.report import choose_pictures, lead, lead_line, make_rows, rows_table
from dtc_jax.tables.train_runs import (
    CHECKOUT,
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

    Runs that are finished are not trained again, an unfinished one goes on from its newest checkpoint.
    """

    output_dir: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: runs/table-BUDGET)")] = None
    """Folder for the runs, table.json, table.md and sheet.png; made if absent."""
    experiments: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: the budget's)")] = ()
    """Rows of the table."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="(default: the budget's)")] = ()
    """Seeds of the trainings."""
    num_products: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the budget's)")] = None
    """Unseen products to measure on."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 after an error of use, or that of a training that failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    try:
        if words[0] not in BUDGETS:
            raise UsageError(f"{words[0]!r}: no such budget; there are: {', '.join(BUDGETS)}")
        arguments = parse_arguments(TableArguments, words[1:], f"{_PROGRAM} {words[0]}")
        run(words[0], arguments)
    except (UsageError, InputError, ModelFolderError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
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
    runs, judge = row_runs(budget, output_dir), judge_run(budget, output_dir)
    shared = shared_runs(budget, output_dir)
    if not shared:
        write_frozen(output_dir)
    # All trainings come before anything is computed here: this process must not hold the accelerator meanwhile.
    train_all([judge, *shared, *runs])

    enable_compilation_cache()
    of_experiment = {row: [one.name for one in runs if one.experiment == row] for row in budget.experiments}
    shown = tuple(names[0] for names in of_experiment.values())
    measured = measure_runs(
        {one.name: one.folder for one in runs},
        judge.folder,
        samplings=budget.samplings,
        num_products=budget.num_products,
        batch_size=arguments.batch_size,
        shown=shown,
        num_shown=budget.num_products,
    )
    rows = {sampling: make_rows(figures, of_experiment) for sampling, figures in measured.figures.items()}
    report = {
        "budget": name,
        "seeds": list(budget.seeds),
        "rows": rows,
        "lead": {sampling: lead(own) for sampling, own in rows.items()},
        "protocol": measured.protocol,
        "runs": {one.name: describe_run(one) for one in [judge, *shared, *runs]},
        "measured": {"device": measured.device, "seconds": measured.seconds},
    }
    page = table_page(report)
    write_json(output_dir / "table.json", report)
    (output_dir / "table.md").write_text(page)
    write_image(output_dir / "sheet.png", picture_sheet(measured, of_experiment, budget.samplings[0]))
    print(f"\n{page}\ntable:   {output_dir / 'table.md'}, table.json\nsheet:   {output_dir / 'sheet.png'}")
    return report


def chosen_budget(budget: Budget, arguments: TableArguments) -> Budget:
    """The budget with what the command line changes.

    Raises:
        UsageError: an unknown experiment, a seed twice, or too few products.
    """
    unknown = [one for one in arguments.experiments if one not in ROWS]
    if unknown:
        raise UsageError(f"--experiments {unknown[0]}: no row of a table; there are: {', '.join(ROWS)}")
    for flag, values in (("--experiments", arguments.experiments), ("--seeds", arguments.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{flag}: one is named twice")
    if min(arguments.seeds, default=0) < 0:
        raise UsageError(f"--seeds {min(arguments.seeds)}: must be 0 or more")
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
    seconds = sum(one["seconds"] for one in runs.values())
    devices = ", ".join(sorted({one["device"] for one in runs.values()}))
    revisions = ", ".join(sorted({str(one["git_revision"])[:12] for one in runs.values()}))
    parts.append(
        f"{report['protocol']['num_products']} unseen products; seeds of training: {report['seeds']} (mean, lowest "
        f"to highest); {len(runs)} trainings in {seconds / 60:.0f} minutes on {devices}, at revision {revisions}; "
        f"measured in {report['measured']['seconds'] / 60:.1f} minutes on {report['measured']['device']}."
    )
    return "\n".join(parts) + "\n"


def picture_sheet(measured: Measured, of_experiment: dict[str, list[str]], sampling: str) -> np.ndarray:
    """Products that the first row told from their distractors, and below them those that it did not."""
    first = DIFFUSE_TO_CHOOSE if DIFFUSE_TO_CHOOSE in of_experiment else next(iter(of_experiment))
    found = measured.found[sampling]
    shown = {row: names[0] for row, names in of_experiment.items()}
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
