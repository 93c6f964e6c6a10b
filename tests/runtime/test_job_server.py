"""What following a job makes of a job server that fails now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from raymerge.errors import ClusterError
from raymerge.runtime import job_server
from raymerge.runtime.job_server import Job

DOWN = RuntimeError("Request failed with status code 500: 500 Internal Server Error.")
HUNG_UP = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
UNKNOWN = RuntimeError("Request failed with status code 404: Job j does not exist.")


class Client:
    """Answers each request for the log with the next of `logs`; the job has ended after the last.

    Args:
        logs: Of each request: texts that come, and errors that end it.
    """

    def __init__(self, *logs: Iterable[str | Exception]) -> None:
        self._logs = list(logs)

    async def tail_job_logs(self, _id: str) -> AsyncIterator[str]:
        for text in self._logs.pop(0):
            if isinstance(text, Exception):
                raise text
            yield text

    def get_job_info(self, _id: str) -> Any:
        status = JobStatus.RUNNING if self._logs else JobStatus.SUCCEEDED
        return SimpleNamespace(status=status, driver_exit_code=0, message="done")


def followed(*logs: Iterable[str | Exception]) -> list[str]:
    lines: list[str] = []
    assert Job("http://head", "j", Client(*logs)).follow(lines.append).exit_code == 0
    return lines


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "POLL_S", 0.0)


def test_lines_come_once_however_often_the_server_hangs_up() -> None:
    lines = followed(["a\nb", HUNG_UP], [DOWN], ["a\n"], ["a\nb\nc\nd"])
    assert lines == ["a", "b", "c", "d"]


def test_a_long_silence_of_the_job_is_not_one_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock runs from the first failure, however long the log was followed before."""
    clock = iter([1000.0, 1059.0, 5000.0, 5001.0])
    monkeypatch.setattr(job_server, "monotonic", lambda: next(clock))
    assert followed([DOWN], [HUNG_UP], ["a\n"], [DOWN], ["a\n", HUNG_UP], ["a\n"]) == ["a"]


@pytest.mark.parametrize(("fault", "retryable"), [(DOWN, True), (UNKNOWN, False)])
def test_what_cannot_pass_is_told_at_once_and_the_rest_after_a_minute(
    fault: Exception, *, retryable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 30.0, 60.0])
    monkeypatch.setattr(job_server, "monotonic", lambda: next(clock))
    with pytest.raises(ClusterError) as caught:
        followed([fault], [fault], [fault])
    assert caught.value.retryable is retryable
    assert next(clock, None) == (None if retryable else 30.0)
    assert "may go on; `ray job logs" in caught.value.__notes__[0]
