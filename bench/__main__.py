"""`python -m bench`: run the benchmarks and print them beside what is promised."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench import report
from bench.suite import CHECKS, SCALES, Suite, bench_method
from bench.tools import METHODS, find_mergekit, find_raymerge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.report import Check, MethodRow

MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
SPARE = 1.66
"""Beside the four checkpoints: one output, the floor's file being gone by then, and some air."""


def _names(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Read `--only`: names of methods and checks, with commas between."""
    known = (*(method.name for method in METHODS), *CHECKS)
    chosen = tuple(text.split(",")) if text else known
    if unknown := [name for name in chosen if name not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    return chosen


@click.command()
@click.option(
    "--where",
    type=click.Path(file_okay=False, path_type=Path),
    help="Checkpoints and outputs. Default: /dev/shm if it has room, else the temporary folder.",
)
@click.option(
    "--disk",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=tempfile.gettempdir(),
    help="A folder on a real disk, for reads with a cold page cache.  [default: temporary folder]",
)
@click.option(
    "--only", callback=_names, help="Comma-separated: names of methods, small, help, plan, cold."
)
@click.option("--ours-only", is_flag=True, help="Do not run mergekit.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--peer",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="mergekit-yaml.  [default: beside this Python]",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Results as JSON.")
@click.option("--scale", type=click.Choice(list(SCALES)), default="full", show_default=True)
def main(
    *,
    where: Path | None,
    disk: Path,
    only: Sequence[str],
    ours_only: bool,
    repeat: int,
    peer: str | None,
    out: Path | None,
    scale: str,
) -> None:
    """Time raymerge and mergekit on the same synthetic checkpoints."""
    mergekit = (peer,) if peer else find_mergekit()
    suite = Suite(
        where=where or _default_where(scale),
        disk=disk,
        scale=scale,
        repeat=repeat,
        raymerge=find_raymerge(),
        mergekit=None if ours_only else mergekit,
        say=lambda line: click.echo(line, err=True),
    )
    if suite.raymerge is None:
        suite.say("raymerge is missing: there is no module raymerge.cli; its columns stay empty")
    if suite.mergekit is None and not ours_only:
        suite.say(
            "mergekit-yaml is missing: run `make .venv/peer` or pass --peer; its columns stay empty"
        )
    suite.where.mkdir(parents=True, exist_ok=True)
    _require_room(suite)
    _run(suite, only, out)
    click.echo(f"\ncheckpoints are kept for the next run: rm -r {suite.where}", err=True)


def _run(suite: Suite, only: Sequence[str], out: Path | None) -> None:
    rows: list[MethodRow] = []
    checks: list[Check] = []
    for method in METHODS:
        if method.name in only:
            rows.append(bench_method(suite, method))
            _save(out, suite, rows, checks)
    for name, check in CHECKS.items():
        if name in only:
            checks.extend(check(suite))
            _save(out, suite, rows, checks)
    if rows:
        click.echo(report.table(report.METHOD_HEADINGS, [row.cells() for row in rows]))
    if checks:
        click.echo()
        click.echo(report.table(report.CHECK_HEADINGS, [check.cells() for check in checks]))


def _save(
    out: Path | None, suite: Suite, rows: Sequence[MethodRow], checks: Sequence[Check]
) -> None:
    """Write what there is so far: a suite stopped halfway keeps its first half."""
    if out is None:
        return
    results = {
        "machine": report.machine(),
        "scale": suite.scale,
        "methods": [row.as_json() for row in rows],
        "checks": [check.as_json() for check in checks],
    }
    out.write_text(json.dumps(results, indent=2) + "\n")


def _default_where(scale: str) -> Path:
    """A folder in memory if it has room, so that no disk is timed; else a temporary one."""
    in_memory = MEMORY_DISK / "raymerge-bench"
    if MEMORY_DISK.is_dir() and _room_bytes(in_memory) >= _needed_bytes(scale):
        return in_memory
    return Path(tempfile.gettempdir(), "raymerge-bench")


def _needed_bytes(scale: str) -> int:
    return int((4 + SPARE) * SCALES[scale][0].num_bytes)


def _room_bytes(where: Path) -> int:
    """Free bytes, and those our checkpoints of an earlier run already take."""
    mine = sum(path.stat().st_blocks * 512 for path in where.glob("llama-*/*/*"))
    parent = next(path for path in (where, *where.parents) if path.exists())
    return shutil.disk_usage(parent).free + mine


def _require_room(suite: Suite) -> None:
    needed_bytes, room_bytes = _needed_bytes(suite.scale), _room_bytes(suite.where)
    if room_bytes < needed_bytes:
        raise click.ClickException(
            f"{suite.where} has room for {room_bytes / 1e9:.1f} GB, the {suite.scale} suite needs "
            f"{needed_bytes / 1e9:.1f} GB: choose another --where or a smaller --scale"
        )


if __name__ == "__main__":
    main()
