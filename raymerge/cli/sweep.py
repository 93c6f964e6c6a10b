"""`raymerge sweep` and `raymerge reproduce`: many recipes, and one of them again."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from raymerge.cli.endings import reported
from raymerge.cli.options import JSON, OVERWRITE, QUIET, run_options, watch_options

if TYPE_CHECKING:
    from raymerge.sweep.record import TrialRecord

FAILED = 4


@click.command()
@click.argument("recipes", nargs=-1)
@click.argument("out")
@JSON
@OVERWRITE
@QUIET
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the trials, and which are merged together. Starts nothing.",
)
@click.option("--status", is_flag=True, help="Show what the sweep in OUT has come to.")
@run_options
@watch_options
def sweep(
    recipes: tuple[str, ...],
    out: str,
    *,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    status: bool,
    overwrite: bool,
    events: str | None,
    trace: str | None,
    **options: Any,
) -> None:
    """Merge many RECIPES, or one with a `sweep:` block, into OUT; evaluate and choose.

    Run it again to finish it.
    """
    if not (recipes or status):
        raise click.UsageError("give RECIPE... and OUT")
    with reported(as_json=as_json, resume=f"run the same command again to finish {out}"):
        from raymerge.sweep import run
        from raymerge.sweep.barrier import barrier_lines
        from raymerge.sweep.outline import outline_lines
        from raymerge.sweep.ranking import evaluated_line, num_trials, table

        def say(line: str) -> None:
            if not quiet:
                click.echo(line, err=True)

        if status:
            found = run.status_of(out)
            lines = [*table(found.trials), *barrier_lines(found.trials), f"{out}: {found.line}"]
            _show(as_json, [asdict(record) for record in found.trials], lines)
            return
        if dry_run:
            outline = run.outline_of(recipes, out, on_note=say, **options)
            _show(as_json, outline.as_json(), outline_lines(outline))
            if outline.failed:
                sys.exit(FAILED)
            return

        result = run.sweep(
            recipes,
            out,
            overwrite=overwrite,
            on_trial=lambda record: say(_line(record)),
            on_evaluated=lambda evaluated: say(evaluated_line(evaluated)),
            on_note=say,
            events=events,
            trace=trace,
            **options,
        )
        failed = len(result.failed)
        counted = (
            f"{out}: {num_trials(len(result.trials))}, {failed} failed, "
            f"{result.resumed} done before, in {result.seconds:.1f} s"
        )
        evaluated = any(trial.evaluations for trial in result.trials)
        ranking = [*table(result.trials)] if evaluated else []
        gated = [trial for trial in result.trials if trial.error is None]
        if gated and all(trial.missed for trial in gated):
            ranking.append("no trial clears its gates: none is kept")
        if result.soup:
            best = [f", which is {trial.name}" for trial in result.trials if trial.rank == 1]
            ranking.append(f"the soup: {' + '.join(result.soup)}{''.join(best)}")
        _show(as_json, result.as_json(), [*ranking, *barrier_lines(result.trials), counted])
        if failed:
            sys.exit(FAILED)


@click.command()
@click.argument("out")
@click.argument("trial")
@click.argument("destination", required=False, metavar="[DEST]")
@JSON
@OVERWRITE
@run_options
def reproduce(
    out: str,
    trial: str,
    destination: str | None,
    *,
    as_json: bool,
    seed: int | None,
    **options: Any,
) -> None:
    """Make a TRIAL of the sweep in OUT again, byte for byte."""
    if seed is not None:
        raise click.UsageError("--seed: a trial has the seed that the ledger says")
    with reported(as_json=as_json, resume="run the same command again to finish it"):
        from raymerge.report import merge_text
        from raymerge.sweep import run

        result = run.reproduce(out, trial, destination, **options)
        click.echo(json.dumps(result.as_json()) if as_json else merge_text(result))


def _show(as_json: bool, document: object, lines: Any) -> None:  # noqa: FBT001 - two ways to print
    click.echo(json.dumps(document) if as_json else "\n".join(lines))


def _line(record: TrialRecord) -> str:
    return f"{record.name}  {record.state}  {record.error or f'in {record.seconds:.1f} s'}"
