"""Evaluations while other trials merge: a few at once, on this machine or on the cluster's.

    submit --> threads of this process --> a program each        here
                                      '--> Ray's task --> it      where there is a cluster

Whatever becomes of an evaluation is told: scores, or why there are none.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from time import perf_counter
from typing import Self

from raymerge.errors import ClusterError
from raymerge.runtime.losses import WorkerLostError
from raymerge.runtime.stopping import LoosePool
from raymerge.storage.urls import whole
from raymerge.sweep.evaluation.calls import arguments_of, environment_of
from raymerge.sweep.evaluation.model import Evaluating
from raymerge.sweep.evaluation.process import Ran, run
from raymerge.sweep.evaluation.scores import NoScoresError, lacking, read_scores
from raymerge.sweep.record import Evaluated, Split

OnEvaluated = Callable[[Evaluated], None]

MAX_WAITING = 64
"""Evaluations that are with Ray at once; a thread of ours waits for each."""
ATTEMPTS = 3
"""How often an evaluation is begun whose worker of Ray is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One evaluation that is to be made."""

    evaluating: Evaluating
    name: str
    checkpoint: str
    split: Split
    subset: int | None
    folder: str
    """That relative paths in a command are from."""


def evaluate(job: Job, stop: Event | None = None, devices: str | None = None) -> Evaluated:
    """Evaluate a checkpoint in a process of its own; a failure is part of what comes back.

    Args:
        job: Which one, and how.
        stop: Ends it early once set.
        devices: Names of the CUDA devices that it has; None for those of this process.
    """
    evaluating = job.evaluating
    assert evaluating.evaluator is not None, "a sweep without an evaluator has nothing to submit"
    if stop is not None and stop.is_set():
        return _failed(job, "stopped with the sweep")
    began = perf_counter()
    arguments = arguments_of(
        evaluating.evaluator,
        job.checkpoint,
        subset=job.subset,
        split=evaluating.split_word(job.split),
    )
    scores: dict[str, float] = {}
    pid, error = os.getpid(), None
    try:
        ran = run(
            arguments,
            limit_s=evaluating.limit_s,
            environment=environment_of(evaluating, devices),
            # Another node of a cluster may not have it: then paths have to be whole.
            folder=job.folder if Path(job.folder).is_dir() else None,
            stop=stop,
        )
    except OSError as failure:
        error = f"{arguments[0]} cannot be started: {failure.strerror}"
    else:
        pid, error = ran.pid, _how_it_failed(ran, evaluating.limit_s)
        if error is None:
            try:
                scores = read_scores(ran.stdout)
            except NoScoresError as failure:
                error = _with_stderr(str(failure), ran)
            else:
                # Those that there are stay: once the recipe names no other task they count.
                error = lacking(scores, evaluating.tasks)
    return Evaluated(
        trial=job.name,
        split=job.split,
        subset=job.subset,
        scores=scores,
        error=error,
        seconds=perf_counter() - began,
        worker=f"{socket.gethostname()}:{pid}",
    )


def _how_it_failed(ran: Ran, limit_s: float) -> str | None:
    if ran.ended_by == "limit":
        return _with_stderr(f"stopped at its limit of {limit_s:g} s", ran)
    if ran.ended_by == "stop":
        return "stopped with the sweep"
    if ran.code < 0:
        with suppress(ValueError):
            return _with_stderr(f"killed by {signal.Signals(-ran.code).name}", ran)
    return _with_stderr(f"ended with exit code {ran.code}", ran) if ran.code else None


def _with_stderr(what: str, ran: Ran) -> str:
    return f"{what}; the end of its stderr:\n{ran.stderr}" if ran.stderr else what


class Pool:
    """Evaluates checkpoints, several at once. Safe to use from any thread.

    Where this process is part of a Ray cluster an evaluation is a task of Ray, which reserves the
    `cpus` and `gpus` that the sweep names: then as many run as fit, each once merges leave room.

    Args:
        evaluating: How.
        slots: One for each that may run at once on this machine, and on a cluster where neither
            `cpus` nor `gpus` is named: the names of its CUDA devices, None for those of this
            process.
        on_evaluated: Told of each evaluation as it ends, one at a time, from a thread of the pool.
            It may submit more.
        here: Whether to leave a cluster alone, which may end before the evaluations do.
    """

    def __init__(
        self,
        evaluating: Evaluating,
        slots: Sequence[str | None] = (None,),
        *,
        on_evaluated: OnEvaluated,
        here: bool = False,
    ) -> None:
        self._evaluating = evaluating
        self._on_evaluated = on_evaluated
        self._only_here = here
        self._slots: SimpleQueue[str | None] = SimpleQueue()
        for slot in slots:
            self._slots.put(slot)
        self._reserved = evaluating.cpus is not None or evaluating.gpus > 0
        self._threads = LoosePool(MAX_WAITING if self._reserved else len(slots))
        self._stop = Event()
        self._telling = Lock()
        self._futures: list[Future[None]] = []

    def submit(
        self, name: str, checkpoint: str, *, split: Split = "search", subset: int | None = None
    ) -> None:
        """Have a checkpoint evaluated as soon as there is room.

        Args:
            name: Of the trial, or `source:` and a source's label.
            checkpoint: Path or URL.
            split: The examples that choose, or those for the report.
            subset: How many of them; None for all.
        """
        job = Job(
            evaluating=self._evaluating,
            name=name,
            checkpoint=whole(checkpoint),
            split=split,
            subset=subset,
            folder=str(Path.cwd()),
        )
        self._futures.append(self._threads.submit(self._work, job))

    @property
    def is_busy(self) -> bool:
        """Whether anything submitted has not ended."""
        return not all(future.done() for future in tuple(self._futures))

    def wait(self) -> None:
        """Return once everything submitted has ended, also what was submitted meanwhile.

        Raises:
            BaseException: Whatever `on_evaluated` raised.
        """
        while self._futures:
            self._futures[0].result()
            del self._futures[0]

    def close(self) -> None:
        """Stop what runs, with all that it started, and call off what waits; nothing is told."""
        self._stop.set()
        self._threads.close()
        for future in self._futures:
            if not future.cancelled():
                future.exception()
        self._futures.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self, job: Job) -> None:
        evaluated = self._evaluate(job)
        with self._telling:
            if not self._stop.is_set():
                self._on_evaluated(evaluated)

    def _evaluate(self, job: Job) -> Evaluated:
        for _ in range(ATTEMPTS):
            if self._only_here or not _on_cluster():
                break
            try:
                if self._reserved:
                    return self._with_ray(job)
                with self._slot():
                    return self._with_ray(job)
            except WorkerLostError as lost:
                why = f"the worker of Ray that ran it was lost: {lost}"
            except ClusterError as failure:
                return _failed(job, str(failure))
            if self._stop.is_set():
                return _failed(job, "stopped with the sweep")
        else:
            return _failed(job, why)
        with self._slot() as devices:
            return evaluate(job, self._stop, devices)

    @contextmanager
    def _slot(self) -> Iterator[str | None]:
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)

    def _with_ray(self, job: Job) -> Evaluated:
        from raymerge.runtime import ray_cluster

        evaluating = self._evaluating
        call = ray_cluster.call(
            evaluate, job, num_cpus=evaluating.cpus or 0, num_gpus=evaluating.gpus
        )
        while not ray_cluster.ended([call], _LOOK_S):
            if self._stop.is_set():
                ray_cluster.cancel(call)
                return _failed(job, "stopped with the sweep")
        evaluated = ray_cluster.answer(call)
        assert isinstance(evaluated, Evaluated), evaluated
        return evaluated


_LOOK_S = 0.5


def _failed(job: Job, error: str) -> Evaluated:
    return Evaluated(
        trial=job.name,
        split=job.split,
        subset=job.subset,
        scores={},
        error=error,
        seconds=0.0,
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )


def _on_cluster() -> bool:
    # Whoever has not loaded Ray has no cluster; loading it takes a second.
    if "ray" not in sys.modules:
        return False
    from raymerge.runtime import ray_cluster

    return ray_cluster.is_connected()
