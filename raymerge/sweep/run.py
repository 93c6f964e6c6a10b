"""What the commands call and Python programs may: run a sweep, make a trial of one again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Unpack

from raymerge.options import RunOptions, access_of, machine_of

if TYPE_CHECKING:
    from raymerge.machine import Machine
    from raymerge.plan.build import Plan
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.events import OnEvent
    from raymerge.runtime.settings import OnProgress
    from raymerge.sweep.evaluation import Evaluating
    from raymerge.sweep.outline import Outline
    from raymerge.sweep.proposing import Proposer
    from raymerge.sweep.record import Evaluated, TrialRecord

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep came to; the fields are those of `raymerge sweep --json`."""

    output: str
    trials: tuple[TrialRecord, ...]
    resumed: int
    """Trials that an earlier run had finished."""
    bytes_read: int
    bytes_written: int
    seconds: float
    soup: tuple[str, ...] | None
    """What a greedy soup has come to: labels of its ingredients; None of another sweep."""

    @property
    def failed(self) -> tuple[TrialRecord, ...]:
        """Trials that came to nothing, and kept ones whose evaluation for the report failed."""
        return tuple(trial for trial in self.trials if trial.error is not None)

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge sweep --json`."""
        from raymerge.sweep.barrier import barriers

        found = {task: asdict(one) for task, one in barriers(self.trials).items()}
        return {**asdict(self), "failed": len(self.failed), "barriers": found}


def outline_of(
    recipes: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    seed: int | None = None,
    on_note: Callable[[str], None] = lambda _: None,
    **options: Unpack[RunOptions],
) -> Outline:
    """What a sweep would merge, and what with what, as far as nothing depends on scores.

    Reads the headers of the sources and no weight; starts nothing.

    Args:
        recipes: Paths or URLs: one recipe with a `sweep:` block, or any number without.
        out: Path that trials without an `out` of their own are put below.
        seed: In place of the recipes'.
        on_note: Told in a line of trials that do not fit at once.
        **options: See `RunOptions`.

    Raises:
        RecipeError: With file, line and key of the first thing wrong.
        PlanError: Trials could not be kept or removed where they go.
    """
    from raymerge.storage import local_folder
    from raymerge.sweep.evaluation.ready import check_ready, slots_here
    from raymerge.sweep.loop import check_places
    from raymerge.sweep.outline import outlined
    from raymerge.sweep.places import Places
    from raymerge.sweep.proposing import OneRound
    from raymerge.sweep.rounds import Outcome, Rounds
    from raymerge.sweep.sources import compared

    place = os.fspath(out)
    proposer, evaluating = _read_sweep(recipes, place, seed, options)
    trials = tuple(proposer.ask())
    check_places({}, trials)
    for label, line in evaluating.sources.items():
        compared(label, line, trials)
    if machine_of(options).address is None:
        check_ready(evaluating)
        slots_here(evaluating)
    places = Places(
        local_folder(place), scratch=evaluating.scratch, access=access_of(options), overwrite=False
    )
    places.check(trials, keep=evaluating.keep is not None)
    errors: dict[str, str] = {}

    def fail(outcome: Outcome) -> None:
        errors[outcome.trial.name] = str(outcome.error)

    rounds = Rounds(options, overwrite=False, on_note=on_note)
    at = [replace(trial, out=places.candidate(trial)) for trial in trials]
    planned = (one_read.trials for one_read in rounds.reads(at, fail))
    return outlined(trials, planned, errors, goes_on=not isinstance(proposer, OneRound))


def sweep(
    recipes: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    on_trial: Callable[[TrialRecord], None] = lambda _: None,
    on_evaluated: Callable[[Evaluated], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
    on_progress: OnProgress = lambda _: None,
    on_event: OnEvent = lambda _: None,
    events: AnyPath | None = None,
    trace: AnyPath | None = None,
    **options: Unpack[RunOptions],
) -> SweepResult:
    """Merge every trial of a sweep, evaluate and choose. Run it again to finish one.

    Args:
        recipes: Paths or URLs: one recipe with a `sweep:` block, or any number without.
        out: Folder of the ledger, and of trials without an `out` of their own.
        seed: In place of the recipes'.
        overwrite: Make every trial anew, whatever its place holds, and evaluate it again.
        on_trial: Told of each trial as it is merged, or fails to be.
        on_evaluated: Told of each evaluation, from any thread.
        on_note: Told how it is run, in a line a time: the engine, where trials do not fit at once.
        on_progress: Told of bytes read and written, from any thread.
        on_event: Told of every `runtime.events.Event`, one at a time, from any thread.
        events: File that events are appended to, a line of JSON each.
        trace: File for a trace of the sweep, which Perfetto opens.
        **options: See `RunOptions`.

    Raises:
        RaymergeError: See `raymerge.errors`. What ends one trial alone is in its record.
    """
    from raymerge.api import listeners_of
    from raymerge.runtime.watching import watched
    from raymerge.storage import local_folder
    from raymerge.sweep import loop
    from raymerge.sweep.evaluation import Pareto, fingerprint
    from raymerge.sweep.greedy import GreedySoup
    from raymerge.sweep.judging import Judge
    from raymerge.sweep.ledger import Ledger
    from raymerge.sweep.places import Places
    from raymerge.sweep.report import write_report
    from raymerge.sweep.rounds import Rounds

    began = perf_counter()
    place = os.fspath(out)
    proposer, evaluating = _read_sweep(recipes, place, seed, options)
    folder, machine = local_folder(place), machine_of(options)
    evaluator = fingerprint(evaluating)
    with (
        watched(
            place,
            listeners_of(on_event, machine),
            events_path=None if events is None else os.fspath(events),
            trace_path=None if trace is None else os.fspath(trace),
        ) as tell,
        loop.joined(machine, evaluating) as join,
        Ledger(
            folder,
            shard_bytes=options.get("shard_bytes"),
            evaluator=evaluator,
            anew=overwrite,
        ) as ledger,
    ):
        if evaluating.evaluator is not None and ledger.others_files is not None:
            on_note(evaluator.why_again(ledger.others_files))
        on_note(f"engine {machine.engine} ({machine.why}), device {machine.device}")
        rounds = Rounds(
            options,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=on_note,
            on_event=tell,
            join=join,
        )
        places = Places(
            folder, scratch=evaluating.scratch, access=access_of(options), overwrite=overwrite
        )
        with Judge(
            rounds,
            ledger,
            evaluating,
            places,
            partial(loop.pool_of, evaluating, machine),
            tie_break=proposer.tie_break,
            on_trial=on_trial,
            on_evaluated=on_evaluated,
        ) as judge:
            records = loop.run(proposer, judge)
    by_fronts = isinstance(evaluating.by, Pareto)
    write_report(folder, records, gates=judge.gates, by_fronts=by_fronts)
    resumed = [one for one in records if one.name not in judge.merged and one.state != "failed"]
    return SweepResult(
        output=place,
        trials=tuple(records),
        resumed=len(resumed),
        bytes_read=judge.bytes_read,
        bytes_written=judge.bytes_written,
        seconds=round(perf_counter() - began, 3),
        soup=proposer.soup if isinstance(proposer, GreedySoup) else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStatus:
    """How far a sweep has come."""

    trials: tuple[TrialRecord, ...]
    """Of which anything is known."""
    asked: tuple[str, ...]
    """Names of those that there are to be so far; a search or a soup asks for more later."""
    running: bool

    @property
    def line(self) -> str:
        """It in a line."""
        from raymerge.sweep.ranking import num_trials

        counts = Counter(trial.state for trial in self.trials)
        waiting = len(set(self.asked) - {trial.name for trial in self.trials})
        parts = [f"{number} {state}" for state, number in sorted(counts.items())]
        parts += [f"{waiting} not yet merged"] if waiting else []
        found = ", ".join(parts) or "nothing yet"
        runs = "runs" if self.running else "does not run"
        return f"{num_trials(len(self.trials) + waiting)}: {found}; it {runs}"


def status_of(out: AnyPath) -> SweepStatus:
    """What the ledger of a sweep says, also while the sweep runs.

    Raises:
        SourceError: There is no sweep.
    """
    from raymerge.errors import SourceError
    from raymerge.storage import local_folder
    from raymerge.sweep.ledger import is_running, read_asked, read_records

    folder = local_folder(os.fspath(out))
    records, running = read_records(folder), is_running(folder)
    if not records and not running:
        raise SourceError(f"{os.fspath(out)} holds no sweep; give the OUT of one")
    return SweepStatus(trials=tuple(records), asked=tuple(read_asked(folder)), running=running)


def reproduce(
    out: AnyPath,
    trial: str,
    destination: AnyPath | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = lambda _: None,
    **options: Unpack[RunOptions],
) -> MergeResult:
    """Make a trial again, byte for byte, from what the ledger says of it.

    Args:
        out: Folder of the sweep.
        trial: Its name, or what no other trial's begins with.
        destination: Where to; None is where the sweep put it.
        overwrite: Replace whatever is there.
        on_progress: Told of bytes read and written, from any thread.
        **options: See `RunOptions`; the limit of a shard is the sweep's.

    Raises:
        SourceError: There is no such trial.
        PlanError: The sources, or raymerge, are others than they were.
    """
    from raymerge.api import merge
    from raymerge.errors import PlanError, SourceError
    from raymerge.recipe import loads
    from raymerge.recipe.wording import did_you_mean, listed
    from raymerge.storage import local_folder
    from raymerge.sweep.ledger import read_rows

    rows = read_rows(local_folder(os.fspath(out)))
    found = [trial] if trial in rows else [name for name in rows if name.startswith(trial)]
    if len(found) > 1:
        raise SourceError(
            f"{os.fspath(out)}: {trial!r} begins {len(found)} trials: {listed(found)}"
        )
    if not found:
        hint = did_you_mean(trial, rows)
        raise SourceError(f"{os.fspath(out)} has no trial {trial!r}; it has {len(rows)}.{hint}")
    row = rows[found[0]]

    def check(planned: Plan, _machine: Machine) -> None:
        if row["digest"] and planned.digest != row["digest"]:
            raise PlanError(
                f"{found[0]} was plan {row['digest']} and is now {planned.digest}: its sources "
                "have changed, or this is another raymerge; `raymerge merge` on its recipe would "
                "make other bytes"
            )

    options["shard_bytes"] = row["shard_bytes"]
    return merge(
        loads(row["recipe"], path=f"{found[0]}.yaml"),
        row["out"] if destination is None else destination,
        overwrite=overwrite,
        on_plan=check,
        on_progress=on_progress,
        **options,
    )


def _read_sweep(
    recipes: AnyPath | Sequence[AnyPath], out: str, seed: int | None, options: RunOptions
) -> tuple[Proposer, Evaluating]:
    """What names the trials of a sweep, and how they are evaluated."""
    from raymerge.errors import RecipeError
    from raymerge.recipe.document import Place
    from raymerge.sweep.evaluation import parse
    from raymerge.sweep.listed import listed_trials
    from raymerge.sweep.proposing import OneRound
    from raymerge.sweep.template import read_template

    several = isinstance(recipes, Sequence) and not isinstance(recipes, str)
    paths = [os.fspath(path) for path in recipes] if several else [os.fspath(recipes)]  # type: ignore[arg-type, union-attr]
    texts = [_read(path, options) for path in paths]
    templates = [read_template(text, path) for text, path in zip(texts, paths, strict=True)]
    [first, *others] = templates or [None]
    if first is not None and not others:
        return first.proposer(out, seed=seed), first.evaluating
    if found := [path for path, each in zip(paths, templates, strict=True) if each is not None]:
        raise RecipeError(f"{found[0]}: has a sweep: block; give it alone", file=found[0])
    trials = listed_trials(paths, texts, out, seed)
    return OneRound(trials), parse({}, Place("", 0))


def _read(path: str, options: RunOptions) -> str:
    from raymerge.errors import RecipeError
    from raymerge.storage import read_file

    if "://" in path:
        return read_file(path, access=access_of(options)).decode("utf-8-sig", "replace")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text; a recipe is YAML", file=path) from error
