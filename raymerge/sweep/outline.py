"""What a sweep would merge, and what with what: `raymerge sweep --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymerge.sweep.groups import PlannedTrial
from raymerge.sweep.trial import Trial, Value
from raymerge.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlinedTrial:
    """One trial, and which group it belongs to."""

    name: str
    out: str
    values: Mapping[str, Value]
    group: int | None
    """From 1 on; None where it cannot be planned."""
    error: str | None
    """Why it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlinedGroup:
    """Trials of equal layout."""

    rounds: tuple[tuple[str, ...], ...]
    """Names of trials that are merged with one read of their sources, in order."""
    tensors: int
    shards: int
    bytes_written: int
    """Of each trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The trials of a sweep, by group; the fields are those of `sweep --dry-run --json`."""

    trials: tuple[OutlinedTrial, ...]
    groups: tuple[OutlinedGroup, ...]
    goes_on: bool
    """Whether further trials may follow, by what these score."""

    @property
    def num_rounds(self) -> int:
        """How often sources are read, each time for some trials of one group."""
        return sum(len(group.rounds) for group in self.groups)

    @property
    def failed(self) -> tuple[OutlinedTrial, ...]:
        """Trials that cannot be planned."""
        return tuple(trial for trial in self.trials if trial.error is not None)

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge sweep --dry-run --json`."""
        return asdict(self)


def outlined(
    trials: Sequence[Trial],
    rounds: Iterable[Sequence[PlannedTrial]],
    errors: Mapping[str, str],
    *,
    goes_on: bool,
) -> Outline:
    """Put an outline together.

    Args:
        trials: In the order of the sweep.
        rounds: Those of them that can be planned, as they are merged with one read each.
        errors: Why others cannot, by name; complete once the rounds have been gone through.
        goes_on: Whether further trials may follow, by what these score.
    """
    numbers: dict[object, int] = {}
    of_trials: dict[str, int] = {}
    groups: dict[int, OutlinedGroup] = {}
    for some in rounds:
        number = numbers.setdefault(some[0].layout, len(numbers) + 1)
        names = tuple(one.trial.name for one in some)
        of_trials |= dict.fromkeys(names, number)
        plan, before = some[0].plan, groups[number].rounds if number in groups else ()
        groups[number] = OutlinedGroup(
            rounds=(*before, names),
            tensors=len(plan.nodes),
            shards=len(plan.shards),
            bytes_written=plan.bytes_written,
        )
    return Outline(
        trials=tuple(
            OutlinedTrial(
                name=trial.name,
                out=trial.out,
                values=trial.values,
                group=of_trials.get(trial.name),
                error=errors.get(trial.name),
            )
            for trial in trials
        ),
        groups=tuple(groups.values()),
        goes_on=goes_on,
    )


def outline_lines(outline: Outline) -> Iterator[str]:
    """An outline for people."""
    for number, group in enumerate(outline.groups, start=1):
        sizes = [len(names) for names in group.rounds]
        parts = f" of {' + '.join(map(str, sizes))}" if len(sizes) > 1 else ""
        yield (
            f"group {number}: {_count(sum(sizes), 'trial')} of {group.tensors} tensors, "
            f"{_count(group.shards, 'shard')}, {format_bytes(group.bytes_written)} each, in "
            f"{_count(len(sizes), 'round')}{parts}"
        )
        yield from (f"  {one.name}  {one.out}" for one in outline.trials if one.group == number)
    if outline.failed:
        yield f"cannot be planned: {_count(len(outline.failed), 'trial')}"
        yield from (f"  {one.name}  {one.error}" for one in outline.failed)
    if outline.groups:
        further = "; more may follow, by what these score" if outline.goes_on else ""
        planned = _count(len(outline.trials) - len(outline.failed), "trial")
        yield (
            f"{planned} in {_count(len(outline.groups), 'group')}, "
            f"{_count(outline.num_rounds, 'round')}: in each the sources are read once{further}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
