"""`python -m bench.storage`: merge from bucket to bucket, against download, merge and upload.

The store is SeaweedFS on this machine, and takes its share of the processors. Four kinds of runs:

    copied    obstore downloads every source, raymerge merges them on the disk, obstore uploads
    direct    raymerge merges from the bucket to the bucket
    floor     obstore reads as much from the bucket and writes as much to it, and nobody merges
    confined  the same with 200 MB to write to, behind a proxy that counts
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click
import obstore
from obstore.store import S3Store

from bench import measure, report
from bench.copies import upload
from bench.models import make_family
from bench.report import MEMORY_LIMIT_BYTES, Check, Figure
from bench.suite import SCALES
from bench.tools import METHODS, RAYMERGE_FLAGS, Command, Method, find_raymerge
from tests.servers.proxy import proxy
from tests.servers.seaweed import S3, find_weed, seaweed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.measure import Run

QUOTA_MB = 200
MOST_OF_COPIED = 0.6
MOST_READ = 1.02
"""Of what the plan says."""
COPY = (sys.executable, "-m", "bench.copies")
METHOD_NAMES = [method.name for method in METHODS]
# Everything else is read-only to who may remount it; $1 is the folder, the rest the command.
CONFINE = f"""
mount -t tmpfs -o size={QUOTA_MB}m scratch "$1" || exit 90
mount -o remount,bind,ro / 2>/dev/null
cd "$1" && shift && exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where the models lie, here and in the bucket, and what is merged."""

    raymerge: Command
    where: Path
    models: Path
    s3: S3
    method: Method

    @property
    def out(self) -> str:
        """Where results go."""
        return self.s3.url("out")

    def copied(self) -> list[Run]:
        """Download, merge and upload, one after the other."""
        local, out = self.where / "copies", self.where / "out"
        for folder in (local, out):
            shutil.rmtree(folder, ignore_errors=True)
        runs = [measure.run([*COPY, self.s3.url(name), local / name]) for name in self.method.read]
        recipe = self._recipe(str(local))
        runs.append(measure.run([*self.raymerge, "merge", recipe, out, *RAYMERGE_FLAGS]))
        runs.append(measure.run([*COPY, out, self.out]))
        for folder in (local, out):
            shutil.rmtree(folder)
        self._clear()
        return runs

    def direct(self) -> Run:
        """From bucket to bucket."""
        run = measure.run([*self.raymerge, "merge", self._recipe(), self.out, *RAYMERGE_FLAGS])
        self._clear()
        return run

    def floor(self) -> Run:
        """The bytes of a merge from bucket to bucket, with nothing done to them."""
        run = measure.run([*COPY, *map(self.s3.url, self.method.read), self.out])
        self._clear()
        return run

    def confined(self) -> tuple[Run, int]:
        """The same with hardly any disk; and the bytes of weights that the store gave."""
        scratch = self.where / "scratch"
        scratch.mkdir(exist_ok=True)
        with proxy(self.s3.endpoint) as between:
            places = dict.fromkeys(
                ("HOME", "TMPDIR", "HF_HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"), str(scratch)
            )
            recipe, out = self._recipe(), self.out
            command: list[str | Path] = [*self.raymerge, "merge", recipe, out, *RAYMERGE_FLAGS]
            env = {**self.s3.at(between.endpoint).env, **places}
            run = measure.run([*_confined(scratch), *command], env=env)
            read = sum(
                exchange.bytes_down
                for exchange in between.log
                if exchange.method == "GET" and exchange.path.endswith(".safetensors")
            )
        self._clear()
        return run, read

    def planned_bytes(self) -> int:
        """What the plan says will be read."""
        found = subprocess.run(  # noqa: S603 - our own command
            [*self.raymerge, "plan", self._recipe(), "--json", "--memory", "2GiB"],
            capture_output=True,
            check=True,
        )
        return int(json.loads(found.stdout)["totals"]["bytes_read"])

    def _recipe(self, folder: str | None = None) -> Path:
        path = self.where / "recipe.yaml"
        text = self.method.recipe(Path("/models"))
        path.write_text(text.replace("/models", folder or self.s3.url()[:-1]))
        return path

    def _clear(self) -> None:
        store = S3Store(self.s3.bucket)
        found = obstore.list(store, f"{self.s3.prefix}out").collect()
        obstore.delete(store, [meta["path"] for meta in found])


def _confined(scratch: Path) -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-c", CONFINE, "sh", str(scratch)]


@contextmanager
def course(where: Path, scale: str, method: Method) -> Iterator[Course]:
    """Models in the bucket of a server that keeps its data on the disk."""
    raymerge, weed = find_raymerge(), find_weed()
    if raymerge is None or weed is None:
        raise click.ClickException("raymerge and SeaweedFS are needed: make install")
    shape = SCALES[scale][0]
    models = where / f"llama-{shape.num_bytes // 1000}kB"
    make_family(models, shape)
    with seaweed(weed, where) as server:
        os.environ.update(server.env)
        found = Course(
            raymerge=raymerge,
            where=where,
            models=models,
            s3=replace(server, prefix="bench/"),
            method=method,
        )
        for name in method.read:
            upload(models / name, found.s3.url(name))
        yield found


def checks(found: Course, repeat: int) -> Iterator[Check]:
    """Every figure, and what it is held to."""
    copied, direct, floor = [], [], []
    for _ in range(repeat):
        copied.append(found.copied())
        direct.append(found.direct())
        floor.append(found.floor())
        click.echo(
            f"copied {_seconds(copied[-1])}, direct {_seconds(direct[-1:])}, "
            f"floor {_seconds(floor[-1:])} s",
            err=True,
        )
    _check_ended([*direct, *floor, *(run for runs in copied for run in runs)])
    yield from _compared(copied, direct, floor)
    confined, read = found.confined()
    _check_ended([confined])
    note = f"on {QUOTA_MB} MB of scratch, through a counting proxy"
    yield Check(name="confined", figure=Figure(value=confined.wall_s, unit=" s"), note=note)
    share = Figure(value=read / found.planned_bytes(), at_most=MOST_READ)
    yield Check(name="bytes read over planned", figure=share, note=f"{read / 1e9:.2f} GB")
    peak = report.peak_gib([*direct, confined])
    limit = Figure(value=peak, unit=" GiB", at_most=MEMORY_LIMIT_BYTES / 2**30)
    yield Check(name="anonymous memory", figure=limit)


def _compared(
    copied: Sequence[Sequence[Run]], direct: Sequence[Run], floor: Sequence[Run]
) -> Iterator[Check]:
    """Times, each the median of its runs."""
    copied_s = median(sum(run.wall_s for run in runs) for runs in copied)
    direct_s, floor_s = (median(run.wall_s for run in runs) for runs in (direct, floor))
    busy_s = median(run.cpu_s for run in direct)
    yield Check(
        name="copied",
        figure=Figure(value=copied_s, unit=" s"),
        note=f"last: {_seconds(copied[-1])}",
    )
    yield Check(
        name="direct",
        figure=Figure(value=direct_s, unit=" s"),
        note=f"{busy_s:.1f} s of processors, the server's not among them",
    )
    ratio = Figure(value=direct_s / copied_s, at_most=MOST_OF_COPIED)
    yield Check(name="direct over copied", figure=ratio)
    busy_s = median(run.cpu_s for run in floor)
    yield Check(
        name="floor", figure=Figure(value=floor_s, unit=" s"), note=f"{busy_s:.1f} s of processors"
    )
    yield Check(name="floor over copied", figure=Figure(value=floor_s / copied_s))
    yield Check(name="direct over floor", figure=Figure(value=direct_s / floor_s))


def _seconds(runs: Sequence[Run]) -> str:
    return " + ".join(f"{run.wall_s:.2f}" for run in runs)


def _check_ended(runs: Sequence[Run]) -> None:
    if failed := [run for run in runs if not run.ok]:
        raise click.ClickException(f"exit {failed[0].exit_code}: {failed[0].complaint}")


@click.command()
@click.option(
    "--where",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir(), "raymerge-bench"),
    help="Models, copies and the store's data.  [default: temporary folder]",
)
@click.option("--scale", type=click.Choice(list(SCALES)), default="full", show_default=True)
@click.option("--method", type=click.Choice(METHOD_NAMES), default="linear", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
def main(*, where: Path, scale: str, method: str, repeat: int) -> None:
    """Time merges from bucket to bucket."""
    where.mkdir(parents=True, exist_ok=True)
    chosen = next(one for one in METHODS if one.name == method)
    with course(where, scale, chosen) as found:
        rows = [check.cells() for check in checks(found, repeat)]
    click.echo(report.table(report.CHECK_HEADINGS, rows))
    click.echo(f"\nmodels are kept for the next run: rm -r {where}", err=True)


if __name__ == "__main__":
    main()
