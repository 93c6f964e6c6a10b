"""Merge and evaluate the trials of rounds, choose among them, keep some.

a round    trials -> merged, each evaluated as soon as its checkpoint is whole -> records
           with subsets: all on the smallest, the best of them on the next, and so on
the end    all records, ranked -> the kept ones in their places, the others removed

All that is known is in the ledger before anything is done by it, so a sweep that is killed goes on
from there: what is merged is not merged again, and what is evaluated not evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

from raymerge.errors import RaymergeError
from raymerge.storage.urls import whole
from raymerge.sweep import choice
from raymerge.sweep.evaluation import Evaluating, Pool
from raymerge.sweep.ledger import Ledger
from raymerge.sweep.places import Places
from raymerge.sweep.record import Evaluated, Split, TrialRecord
from raymerge.sweep.rounds import MOST_AT_ONCE, Outcome, Rounds, record_of
from raymerge.sweep.sources import Sources, compared, floors_of
from raymerge.sweep.trial import Trial

OnTrial = Callable[[TrialRecord], None]
OnEvaluated = Callable[[Evaluated], None]


class Judge:
    """Says what trials come to.

    Used as a context: leaving it ends evaluations under way, and lets go of scratch.

    Args:
        rounds: What merges.
        ledger: What is known.
        evaluating: How trials are evaluated and chosen.
        places: Where they lie.
        start_pool: Starts what evaluates, given whom to tell.
        tie_break: See `choice.ranked`.
        on_trial: Told of each trial as it is merged, or fails to be.
        on_evaluated: Told of each evaluation, from any thread.

    Raises:
        PlanError: What evaluates is not installed.
    """

    def __init__(
        self,
        rounds: Rounds,
        ledger: Ledger,
        evaluating: Evaluating,
        places: Places,
        start_pool: Callable[[OnEvaluated], Pool],
        *,
        tie_break: choice.TieBreak,
        on_trial: OnTrial,
        on_evaluated: OnEvaluated,
    ) -> None:
        self._rounds = rounds
        self._ledger = ledger
        self._evaluating = evaluating
        self._places = places
        self._tie_break = tie_break
        self._on_trial = on_trial
        self._on_evaluated = on_evaluated
        self._pool = start_pool(self._take)
        rounds.yield_to(lambda: self._pool.is_busy)
        self._asked: dict[str, Trial] = {}
        self._sources = Sources(rounds.plan)
        self._digests: dict[str, str] = {}
        """What evaluations under way are of, by name."""
        self._tried: set[tuple[str, Split, int | None]] = set()
        """Evaluations of this run: one that fails is made again by the next run."""
        self.merged: dict[str, TrialRecord] = {}
        """What this run has merged, or failed to, as it came out."""
        self.bytes_read = self.bytes_written = 0
        self.gates: Mapping[str, float] = evaluating.gates
        """The least that a kept trial scores, by task; once all is decided, also by sources."""

    def round(self, trials: Sequence[Trial]) -> list[TrialRecord]:
        """Merge and evaluate trials, but for what is known of them; their records, in order.

        Raises:
            RaymergeError: What ends the whole sweep: a source cannot be read, or not evaluated, or
                is another one than it was.
        """
        named = {trial.name: trial for trial in trials}
        self._asked |= named
        self._ledger.ask(self._asked)
        for trial in named.values():
            known = None if trial.name in self.merged else self._known(trial)
            if known is not None:
                self._sources.check(trial, known.sources)
        self._places.check(trials, keep=self._evaluating.keep is not None)
        if self._evaluating.evaluator is None:
            lacking = [trial for trial in named.values() if not self._lies(trial)]
            self._merge(lacking, lambda _: None)
        else:
            self._evaluate_sources(trials)
            for some in self._portions(list(named.values())):
                self._race(some)
                self._ledger.evaluator.check_still(self._evaluating)
                self._thin()
        return [self._record(trial) for trial in trials]

    def finish(self) -> list[TrialRecord]:
        """Decide on all trials; their records in the order asked for."""
        if self._evaluating.evaluator is not None and self._asked:
            best = choice.ranked(self._judged(), self._evaluating, self._tie_break)
            kept = choice.chosen(best, self._evaluating)
            if self._evaluating.splits is not None:
                self._evaluate([self._asked[one.name] for one in kept], "final", None)
                self._ledger.evaluator.check_still(self._evaluating)
            self.gates = choice.least_scores(self._evaluating, self._floors())
            self._settle(kept)
            self._end(best, {one.name for one in kept})
        return [self._record(trial) for trial in self._asked.values()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.close()
        self._places.close()

    def _portions(self, trials: Sequence[Trial]) -> Iterator[Sequence[Trial]]:
        """Trials that are decided on before the next are merged: candidates take room."""
        races = self._evaluating.keep is None or self._evaluating.rungs is not None
        step = len(trials) if races else MOST_AT_ONCE
        for start in range(0, len(trials), step):
            yield trials[start : start + step]

    def _race(self, trials: Sequence[Trial]) -> None:
        """Evaluate trials on one subset after the other, always fewer of them."""
        racing = list(trials)
        for subset in self._evaluating.subsets:
            self._evaluate(racing, "search", subset)
            if subset is not None:
                records = [self._record(trial) for trial in racing]
                names = choice.going_on(records, self._evaluating, self._floors(), subset)
                racing = [trial for trial in racing if trial.name in names]

    def _evaluate(self, trials: Iterable[Trial], split: Split, subset: int | None) -> None:
        """Have trials evaluated that are not yet, merging first what is not there."""
        absent = []
        for trial in trials:
            if self._lacks(trial, split, subset):
                known = self._known(trial)
                place = known and self._places.find(trial, known.digest)
                if known and place:
                    self._submit(trial.name, known.digest, place, split, subset)
                else:
                    absent.append(trial)

        def submit(record: TrialRecord) -> None:
            place = self._places.candidate(self._asked[record.name])
            self._submit(record.name, record.digest, place, split, subset)

        self._merge(absent, submit)
        self._pool.wait()

    def _submit(self, name: str, digest: str, place: str, split: Split, subset: int | None) -> None:
        self._tried.add((name, split, subset))
        self._digests[name] = digest
        self._pool.submit(name, place, split=split, subset=subset)

    def _take(self, evaluated: Evaluated) -> None:
        self._ledger.add(evaluated, self._digests[evaluated.trial])
        self._on_evaluated(evaluated)

    def _merge(self, trials: Sequence[Trial], then: OnTrial) -> None:
        """Merge trials where candidates lie, and do something with each that is whole."""
        places = self._places
        again = [
            trial.name
            for trial in trials
            if (known := self._known(trial))
            and places.is_damaged(places.candidate(trial), known.digest)
        ]
        places.begin(map(places.candidate, trials))
        at = [replace(trial, out=places.candidate(trial)) for trial in trials]

        def end(outcome: Outcome) -> None:
            record = self._came_to(outcome)
            self._add(record)
            self._on_trial(record)
            if outcome.error is None:
                then(record)

        if at:
            self._rounds.merge(at, end, again=again)

    def _came_to(self, outcome: Outcome) -> TrialRecord:
        """What becomes of a trial; of one that was merged before its evaluations stay."""
        trial = self._asked[outcome.trial.name]
        known = self._known(trial)
        if known is None or outcome.error is None:
            return self._explained(trial, record_of(trial, outcome))
        return replace(known, state="failed", error=str(outcome.error))

    def _explained(self, trial: Trial, record: TrialRecord) -> TrialRecord:
        """A failure that comes of another recipe under the name of one that was merged."""
        before = self._ledger.record(trial.name)
        if record.error is None or before is None or not before.digest:
            return record
        if before.text == trial.text:
            return record
        error = (
            f"{record.error}. Its recipe is not the one that {trial.name} was merged by: remove "
            f"{trial.out} to have it made anew, or give another OUT"
        )
        return replace(record, error=error)

    def _add(self, record: TrialRecord) -> None:
        self._ledger.append(record)
        self.merged[record.name] = record
        if record.state != "failed":
            self.bytes_read += record.bytes_read
            self.bytes_written += record.bytes_written

    def _evaluate_sources(self, trials: Sequence[Trial]) -> None:
        """Have the sources evaluated that gates compare with, beside the first merges."""
        for label, place in self._evaluating.sources.items():
            name = f"{choice.SOURCE}{label}"
            if name in self._digests:
                continue
            source = compared(label, place, trials)
            # One that is gone is what it was when it was evaluated.
            now = self._sources.digest_of(source, trials)
            digest = now or self._ledger.newest_digest(name) or source.location
            known = self._ledger.evaluations(name, digest)
            if not any(choice.counts(one, self._evaluating) for one in known):
                self._submit(name, digest, source.location, "search", None)
            self._digests[name] = digest

    def _floors(self) -> choice.Floors:
        """What the sources score that gates compare with."""
        names = {label: f"{choice.SOURCE}{label}" for label in self._evaluating.sources}
        return floors_of(
            {
                label: self._ledger.evaluations(name, self._digests[name])
                for label, name in names.items()
            },
            self._evaluating.tasks,
        )

    def _judged(self) -> list[TrialRecord]:
        found = map(self._matching, self._asked.values())
        records = [record for record in found if record is not None]
        return choice.judged(records, self._evaluating, self._floors())

    def _thin(self) -> None:
        """Keep what trials so far come to, and let go of those that cannot be kept any more."""
        judged = self._judged()
        losers: set[str] = set()
        if self._evaluating.keep is not None:
            best = choice.ranked(judged, self._evaluating, self._tie_break)
            kept = {one.name for one in choice.chosen(best, self._evaluating)}
            # What an earlier run has kept stays until all is known.
            losers = {one.name for one in best if one.rank and one.state == "merged"} - kept
        self._let_go([one for one in judged if one.name in losers])
        self._write([one for one in judged if one.name not in losers])

    def _settle(self, kept: Sequence[TrialRecord]) -> None:
        """Bring the chosen trials to their own places, merging what is not there any more."""
        absent, failed = [], []
        for record in kept:
            trial = self._asked[record.name]
            try:
                if not self._places.settle(trial, record.digest):
                    absent.append(trial)
            except RaymergeError as error:
                failed.append(replace(record, state="failed", error=str(error)))
        digests = {record.name: record.digest for record in kept}

        def end(outcome: Outcome) -> None:
            record = self._came_to(outcome)
            if outcome.result and record.digest != digests[record.name]:
                error = "its sources have changed since it was evaluated; run the sweep again"
                record = replace(record, state="failed", error=error)
            self._add(record)

        self._places.begin(trial.out for trial in absent)
        by_limit: dict[int | None, list[Trial]] = {}
        for trial in absent:
            by_limit.setdefault(self._ledger.shard_bytes(trial.name), []).append(trial)
        for limit, some in by_limit.items():
            again = [
                trial.name
                for trial in some
                if self._places.is_damaged(trial.out, digests[trial.name])
            ]
            self._rounds.with_shards(limit).merge(some, end, again=again)
        self._ledger.append(*failed)

    def _end(self, best: Sequence[TrialRecord], kept: set[str]) -> None:
        """Keep what was decided, and remove what it says."""
        removes = self._evaluating.keep is not None or self._evaluating.scratch is not None
        losers: list[TrialRecord] = []
        others: list[TrialRecord] = []
        for one in best:
            known = self._record(self._asked[one.name])
            if one.name not in kept:
                decided = replace(one, state="merged") if one.state == "kept" else one
                (losers if removes and one.rank else others).append(decided)
            elif known.state == "failed":
                others.append(known)
            else:
                error = choice.failure_of_final(known, self._evaluating)
                others.append(replace(one, state="kept", error=error))
        self._write(others)
        self._let_go(losers)
        self._places.clean()

    def _let_go(self, losers: Sequence[TrialRecord]) -> None:
        """Remove trials that are not kept, unless what lies there is not the sweep's own."""
        own = [one for one in losers if self._places.is_own(self._asked[one.name], one.digest)]
        names = {one.name for one in own}
        # Before it is done: a run that is killed here finds what is left to remove.
        self._write(
            replace(one, state="removed" if one.name in names else "merged") for one in losers
        )
        self._places.remove(self._asked[name] for name in names)

    def _write(self, records: Iterable[TrialRecord]) -> None:
        self._ledger.append(*(one for one in records if one != self._ledger.record(one.name)))

    def _matching(self, trial: Trial) -> TrialRecord | None:
        """What the ledger has of this very trial."""
        record = self._ledger.record(trial.name)
        if record is None or record.text != trial.text:
            return None
        return record if whole(record.out) == whole(trial.out) else None

    def _known(self, trial: Trial) -> TrialRecord | None:
        """The same, if it was merged once."""
        record = self._matching(trial)
        return record if record and record.digest else None

    def _record(self, trial: Trial) -> TrialRecord:
        record = self._matching(trial)
        assert record is not None, trial.name
        return record

    def _lies(self, trial: Trial) -> bool:
        known = self._known(trial)
        if known is None or known.state == "removed":
            return False
        return self._places.find(trial, known.digest) is not None

    def _lacks(self, trial: Trial, split: Split, subset: int | None) -> bool:
        """Whether an evaluation of a trial is still to be made."""
        if (trial.name, split, subset) in self._tried:
            return False
        record = self._known(trial)
        if record is None:
            return trial.name not in self.merged
        return not choice.counts(choice.newest(record, split, subset), self._evaluating)
