"""What the commands call and Python programs may: run a sweep, make a trial of one again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Unpack

from raymerge.options import RunOptions, access_of

if TYPE_CHECKING:
    from raymerge.machine import Machine
    from raymerge.plan.build import Plan
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.settings import OnProgress
    from raymerge.sweep.record import TrialRecord
    from raymerge.sweep.rounds import Outcome
    from raymerge.sweep.trial import Trial

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

    @property
    def failed(self) -> tuple[TrialRecord, ...]:
        """The trials that came to nothing."""
        return tuple(trial for trial in self.trials if trial.state == "failed")

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge sweep --json`."""
        return {**asdict(self), "failed": len(self.failed)}


def trials_of(
    recipes: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    seed: int | None = None,
    **options: Unpack[RunOptions],
) -> tuple[Trial, ...]:
    """The trials that a sweep would merge.

    Args:
        recipes: Paths or URLs: one recipe with a `sweep:` block, or any number without.
        out: Path that trials without an `out` of their own are put below.
        seed: In place of the recipes'.
        **options: See `RunOptions`.

    Raises:
        RecipeError: With file, line and key of the first thing wrong.
    """
    from raymerge.errors import RecipeError
    from raymerge.sweep.template import read_template

    several = isinstance(recipes, Sequence) and not isinstance(recipes, str)
    paths = [os.fspath(path) for path in recipes] if several else [os.fspath(recipes)]  # type: ignore[arg-type, union-attr]
    texts = [_read(path, options) for path in paths]
    templates = [read_template(text, path) for text, path in zip(texts, paths, strict=True)]
    place = os.fspath(out)
    [first, *others] = templates or [None]
    if first is not None and not others:
        trials = list(first.trials(place, seed=seed))
    elif found := [path for path, each in zip(paths, templates, strict=True) if each is not None]:
        raise RecipeError(f"{found[0]}: has a sweep: block; give it alone", file=found[0])
    else:
        trials = _listed(paths, texts, place, seed)
    _check_places(trials)
    return tuple(trials)


def sweep(
    recipes: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    on_trial: Callable[[TrialRecord], None] = lambda _: None,
    on_progress: OnProgress = lambda _: None,
    **options: Unpack[RunOptions],
) -> SweepResult:
    """Merge every trial of a sweep. Run it again to finish one that was killed.

    Args:
        recipes: Paths or URLs: one recipe with a `sweep:` block, or any number without.
        out: Folder of the ledger, and of trials without an `out` of their own.
        seed: In place of the recipes'.
        overwrite: Make every trial anew, whatever its place holds.
        on_trial: Told of each trial as it ends.
        on_progress: Told of bytes read and written, from any thread.
        **options: See `RunOptions`.

    Raises:
        RaymergeError: See `raymerge.errors`. What ends one trial alone is in its record.
    """
    from raymerge.storage import local_folder
    from raymerge.sweep.ledger import Ledger
    from raymerge.sweep.rounds import Rounds

    began = perf_counter()
    place = os.fspath(out)
    trials = trials_of(recipes, place, seed=seed, **options)
    folder = local_folder(place)
    with Ledger(folder, shard_bytes=options.get("shard_bytes")) as ledger:
        known = {} if overwrite else ledger.records()
        left = [trial for trial in trials if not _is_done(known.get(trial.name), trial)]

        def keep(outcome: Outcome) -> None:
            record = _record(outcome)
            ledger.append(record)
            on_trial(record)

        with Rounds(options, overwrite=overwrite, on_progress=on_progress) as rounds:
            if left:
                rounds.merge(left, keep)
        records = ledger.records()
    ran = [records[trial.name] for trial in left]
    return SweepResult(
        output=place,
        trials=tuple(records[trial.name] for trial in trials),
        resumed=len(trials) - len(left),
        bytes_read=sum(record.bytes_read for record in ran),
        bytes_written=sum(record.bytes_written for record in ran),
        seconds=round(perf_counter() - began, 3),
    )


def trials_in(out: AnyPath) -> tuple[TrialRecord, ...]:
    """What the ledger of a sweep says, also while the sweep runs.

    Raises:
        SourceError: There is no sweep.
    """
    from raymerge.errors import SourceError
    from raymerge.storage import local_folder
    from raymerge.sweep.ledger import read_rows, record_of

    rows = read_rows(local_folder(os.fspath(out)))
    if not rows:
        raise SourceError(f"{os.fspath(out)} holds no sweep; give the OUT of one")
    return tuple(map(record_of, rows.values()))


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
        trial: Its name.
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
    from raymerge.recipe.wording import did_you_mean
    from raymerge.storage import local_folder
    from raymerge.sweep.ledger import read_rows

    rows = read_rows(local_folder(os.fspath(out)))
    if trial not in rows:
        hint = did_you_mean(trial, rows)
        raise SourceError(f"{os.fspath(out)} has no trial {trial!r}; it has {len(rows)}.{hint}")
    row = rows[trial]

    def check(planned: Plan, _machine: Machine) -> None:
        if row["digest"] and planned.digest != row["digest"]:
            raise PlanError(
                f"{trial} was plan {row['digest']} and is now {planned.digest}: its sources have "
                "changed, or this is another raymerge; `raymerge merge` on its recipe would make "
                "other bytes"
            )

    options["shard_bytes"] = row["shard_bytes"]
    return merge(
        loads(row["recipe"], path=f"{trial}.yaml"),
        row["out"] if destination is None else destination,
        overwrite=overwrite,
        on_plan=check,
        on_progress=on_progress,
        **options,
    )


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


def _listed(paths: list[str], texts: list[str], out: str, seed: int | None) -> list[Trial]:
    """A trial per recipe, named by its file, and by its folder where two files are named alike."""
    from raymerge.recipe.document import read_documents
    from raymerge.sweep.template import make_trial

    stems = Counter(Path(path).stem for path in paths)
    trials = []
    for path, text in zip(paths, texts, strict=True):
        file = Path(path)
        stem = file.stem if stems[file.stem] == 1 else f"{file.parent.name}-{file.stem}"
        documents = read_documents(text, path)
        trials.append(make_trial(documents, path, {}, out, stem=stem, seed=seed))
    return trials


def _check_places(trials: Sequence[Trial]) -> None:
    from raymerge.errors import RecipeError

    for what in ("name", "out"):
        first: dict[str, Trial] = {}
        for trial in trials:
            key = os.path.normpath(getattr(trial, what))
            twin = first.setdefault(key, trial)
            if twin is not trial:
                raise RecipeError(
                    f"{trial.recipe.path}: {what} is {key!r}, as it is of {twin.recipe.path} "
                    f"({twin.name}); give each a place of its own with out:, and each file once",
                    file=trial.recipe.path,
                )


def _is_done(record: TrialRecord | None, trial: Trial) -> bool:
    return (
        record is not None
        and record.state != "failed"
        and (record.text, record.out) == (trial.text, trial.out)
    )


def _record(outcome: Outcome) -> TrialRecord:
    from raymerge.sweep.record import TrialRecord

    trial, result = outcome.trial, outcome.result
    return TrialRecord(
        name=trial.name,
        digest=result.digest if result else "",
        values=trial.values,
        seed=trial.recipe.seed,
        text=trial.text,
        out=trial.out,
        state="merged" if result else "failed",
        error=str(outcome.error) if outcome.error else None,
        seconds=result.seconds if result else 0.0,
        bytes_read=result.bytes_read if result else 0,
        bytes_written=result.bytes_written if result else 0,
        evaluations=(),
        missed=(),
        score=None,
    )
