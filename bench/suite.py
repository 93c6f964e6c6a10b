"""What is run, in which order, and what becomes of the outputs."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import measure, moe
from bench.models import LLAMA_1B, LLAMA_3M, LLAMA_150M, LLAMA_TINY, LlamaShape, make_family
from bench.moe import MOE_671B, MOE_SMALL, MoeShape
from bench.report import Check, Figure, MethodRow, median_s, peak_gib, quotient
from bench.shards import data_bytes, shard_paths
from bench.tools import LINEAR_OF_TWO, PEER_FLAGS, RAYMERGE_FLAGS, TIES, Command, Method

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.measure import Run

SCALES: dict[str, tuple[LlamaShape, MoeShape]] = {
    "full": (LLAMA_1B, MOE_671B),
    "medium": (LLAMA_150M, MOE_671B),
    "small": (LLAMA_3M, MOE_SMALL),
}
STILL_CACHED = 0.01
"""More of a dropped file than this in the page cache, and the cache was not cold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Where to work, with which tools, how often."""

    where: Path
    disk: Path
    scale: str
    repeat: int
    raymerge: Command | None
    mergekit: Command | None
    say: Callable[[str], None]
    """Takes a line of progress."""

    @property
    def shape(self) -> LlamaShape:
        """The model the methods are timed on."""
        return SCALES[self.scale][0]

    def family(self, shape: LlamaShape) -> Path:
        """The folder of a base and its fine-tunes, made if need be."""
        folder = self.where / f"llama-{shape.num_bytes // 1000}kB"
        if not folder.exists():
            self.say(f"making 4 checkpoints of {shape.num_bytes / 1e9:.2g} GB in {folder}")
        make_family(folder, shape)
        return folder

    def merge(self, tool: Command, method: Method, models: Path, **env: str) -> Run:
        """Run one merge, see that it wrote every byte, throw the output away."""
        recipe = self.where / "recipe.yaml"
        recipe.write_text(method.recipe(models))
        out = self.where / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            run = measure.run(self._merge_command(tool, recipe, out), env=env)
            run = _whole(run, out, data_bytes(models / method.sources[0]))
        finally:
            shutil.rmtree(out, ignore_errors=True)
        return self._told(f"{method.name} on {models.name}, {self._name(tool)}", run)

    def plan(self, tool: Command, method: Method, models: Path) -> Run:
        """Run one plan."""
        recipe = self.where / "recipe.yaml"
        recipe.write_text(method.recipe(models))
        return self._told("plan, raymerge", measure.run([*tool, "plan", recipe]))

    def _merge_command(self, tool: Command, recipe: Path, out: Path) -> list[str | Path]:
        if tool == self.mergekit:
            return [*tool, recipe, out, *PEER_FLAGS]
        return [*tool, "merge", recipe, out, *RAYMERGE_FLAGS]

    def _name(self, tool: Command) -> str:
        return "mergekit" if tool == self.mergekit else "raymerge"

    def _told(self, what: str, run: Run) -> Run:
        ending = "" if run.ok else f", FAILED with {run.exit_code}: {run.complaint[-500:]}"
        self.say(f"{what}: {run.wall_s:.2f} s, {run.anon_bytes / 2**30:.2f} GiB{ending}")
        return run


def _whole(run: Run, out: Path, expected_bytes: int) -> Run:
    """The run, failed if it says it ended well and its output has not the bytes of a merge."""
    written_bytes = data_bytes(out)
    if not run.ok or written_bytes == expected_bytes:
        return run
    complaint = f"wrote {written_bytes} bytes of tensors, expected {expected_bytes}"
    return replace(run, exit_code=-1, complaint=complaint)


def bench_method(suite: Suite, method: Method) -> MethodRow:
    """Time one method: floor and raymerge in turn, then mergekit once.

    Each tool first merges the 0.2 MB model, so that compiled kernels and libraries are in their
    caches. The floor comes before raymerge, so that both find the sources in the page cache.
    """
    tiny = suite.family(LLAMA_TINY)
    models = suite.family(suite.shape)
    peer = suite.mergekit
    for tool in filter(None, (suite.raymerge, peer)):
        suite.merge(tool, method, tiny)
    paths = [path for source in method.read for path in shard_paths(models / source)]
    floors_s, ours = [], []
    for _ in range(suite.repeat):
        wrote_s = measure.write(suite.where / "floor", suite.shape.num_bytes)
        floors_s.append(measure.cat(paths) + wrote_s)
        suite.say(f"{method.name}, floor: {floors_s[-1]:.2f} s")
        if suite.raymerge:
            ours.append(suite.merge(suite.raymerge, method, models))
    return MethodRow(
        method=method,
        ours=tuple(ours),
        peer=suite.merge(peer, method, models) if peer else None,
        floors_s=tuple(floors_s),
        held=suite.scale == "full",
    )


def bench_cold(suite: Suite) -> Iterator[Check]:
    """Linear of two sources on a real disk, dropped from the page cache before every read.

    The output goes where all outputs go: what is compared is reading. A virtual disk may have a
    cache of its own, which this cannot drop: a first `cat` is not counted, then the two take turns.
    """
    name = "cold sources: linear of two over `cat`"
    needed_bytes = 2 * suite.shape.num_bytes + (1 << 30)
    if shutil.disk_usage(suite.disk).free < needed_bytes:
        yield _skipped(name, f"{suite.disk} has less than {needed_bytes / 1e9:.1f} GB free")
        return
    if suite.raymerge is None:
        yield _skipped(name, "raymerge is missing")
        return
    with _copied(suite) as models:
        paths = [path for source in LINEAR_OF_TWO.read for path in shard_paths(models / source)]
        cached = [measure.drop_from_cache(paths)]
        measure.cat(paths)
        cats_s, ours = [], []
        for _ in range(suite.repeat):
            cached.append(measure.drop_from_cache(paths))
            cats_s.append(measure.cat(paths))
            suite.say(f"cold, cat: {cats_s[-1]:.2f} s")
            cached.append(measure.drop_from_cache(paths))
            ours.append(suite.merge(suite.raymerge, LINEAR_OF_TWO, models))
    if max(cached) > STILL_CACHED:
        yield _skipped(name, f"{max(cached):.0%} of the sources stayed in the cache: is it tmpfs?")
        return
    yield _ratio_to_cat(name, ours, cats_s, held=suite.scale == "full")


@contextmanager
def _copied(suite: Suite) -> Iterator[Path]:
    """Two sources on the disk, for a while."""
    models = suite.family(suite.shape)
    with tempfile.TemporaryDirectory(prefix="raymerge-bench-", dir=suite.disk) as folder:
        for name in LINEAR_OF_TWO.read:
            shutil.copytree(models / name, Path(folder, name))
        yield Path(folder)


def _ratio_to_cat(name: str, ours: Sequence[Run], cats_s: Sequence[float], *, held: bool) -> Check:
    ours_s, cat_s = median_s(ours), median(cats_s)
    figure = Figure(value=quotient(ours_s, cat_s), unit="x", at_most=1.5 if held else None)
    return Check(
        name=name, figure=figure, note=_failure(ours) or f"{ours_s:.2f} s, cat {cat_s:.2f} s"
    )


def bench_small(suite: Suite) -> Iterator[Check]:
    """TIES on the 0.2 MB model: the first run ever, which compiles, and later ones."""
    models = suite.family(LLAMA_TINY)
    note = "mergekit was not run"
    if suite.mergekit:
        suite.merge(suite.mergekit, TIES, models)
        note = f"mergekit {_seconds(suite.merge(suite.mergekit, TIES, models))}"
    if suite.raymerge is None:
        yield _skipped("merge of 0.2 MB", f"raymerge is missing; {note}")
        return
    with tempfile.TemporaryDirectory() as empty:
        first = suite.merge(suite.raymerge, TIES, models, NUMBA_CACHE_DIR=empty)
    yield _timed("merge of 0.2 MB, compiling", [first], at_most=15.0, note="empty kernel cache")
    suite.merge(suite.raymerge, TIES, models)
    runs = [suite.merge(suite.raymerge, TIES, models) for _ in range(suite.repeat)]
    yield _timed("merge of 0.2 MB", runs, at_most=2.5, note=note)


def bench_help(suite: Suite) -> Iterator[Check]:
    """`raymerge --help`."""
    if suite.raymerge is None:
        yield _skipped("raymerge --help", "raymerge is missing")
        return
    command = [*suite.raymerge, "--help"]
    measure.run(command)
    runs = [measure.run(command) for _ in range(suite.repeat)]
    yield _timed("raymerge --help", runs, at_most=0.5)


def bench_plan(suite: Suite) -> Iterator[Check]:
    """`raymerge plan` of TIES over three sources of the 671B mixture of experts."""
    if suite.raymerge is None:
        yield _skipped("plan of 671B", "raymerge is missing")
        return
    shape = SCALES[suite.scale][1]
    models = suite.where / f"moe-{shape.layers}x{shape.experts}"
    moe.make_family(models, shape)
    runs = [suite.plan(suite.raymerge, TIES, models) for _ in range(suite.repeat)]
    name = f"plan, {len(shape.tensors())} tensors x 4"
    yield _timed(f"{name}: time", runs, at_most=10.0)
    peak = peak_gib(runs) if median_s(runs) is not None else None
    yield Check(name=f"{name}: memory", figure=Figure(value=peak, unit=" GiB", at_most=1.0))


CHECKS: Mapping[str, Callable[[Suite], Iterator[Check]]] = {
    "small": bench_small,
    "help": bench_help,
    "plan": bench_plan,
    "cold": bench_cold,
}


def _timed(name: str, runs: Sequence[Run], *, at_most: float, note: str = "") -> Check:
    figure = Figure(value=median_s(runs), unit=" s", at_most=at_most)
    return Check(name=name, figure=figure, note=_failure(runs) or note)


def _skipped(name: str, reason: str) -> Check:
    return Check(name=name, figure=Figure(value=None), note=f"skipped: {reason}")


def _failure(runs: Sequence[Run]) -> str:
    failed = [run for run in runs if not run.ok]
    return f"failed with {failed[0].exit_code}" if failed else ""


def _seconds(run: Run) -> str:
    return f"{run.wall_s:.2f} s" if run.ok else f"failed with {run.exit_code}"
