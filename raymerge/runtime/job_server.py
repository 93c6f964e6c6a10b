"""Ray's job server, as a machine outside the cluster sees it: over HTTP, without joining.

What Ray, requests and aiohttp raise becomes a ClusterError here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raymerge.errors import ClusterError

KNOCK_S = 5.0
"""For the job server to answer at all."""
LOST_S = 60.0
"""Without an answer before a job is not followed any more."""
POLL_S = 1.0
NOT_FOUND = 127
"""A shell's exit code for a command that is not there."""

_PASSING = re.compile(r"WebSocket|status code 5\d\d")
"""In what Ray's client says of a head that is on its way down, or up again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    exit_code: int
    """The driver's own."""
    message: str
    """The job server's account of it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command on its way on a cluster."""

    address: str
    submission_id: str
    _client: Any

    def ray_command(self, verb: str, *flags: str) -> str:
        """A `ray job` command line about this job."""
        return shlex.join(
            ["ray", "job", verb, "--address", self.address, *flags, self.submission_id]
        )

    def stop(self) -> None:
        """Terminate the driver.

        Raises:
            ClusterError: The job server does not answer, or refuses.
        """
        with _translated(self.address):
            self._client.stop_job(self.submission_id)

    def follow(self, on_line: Callable[[str], None]) -> Outcome:
        """Pass on what the driver prints, line by line, until it has ended.

        Raises:
            ClusterError: The job ended without an exit code, or the cluster does not answer.
        """
        log = _Log(on_line)
        silent_since: float | None = None
        while True:
            try:
                with _translated(self.address):
                    asyncio.run(log.follow(self._client.tail_job_logs(self.submission_id)))
                    details = self._client.get_job_info(self.submission_id)
                silent_since = None
            except ClusterError as error:
                now = monotonic()
                silent_since = now if log.has_grown or silent_since is None else silent_since
                if error.retryable and now - silent_since < LOST_S:
                    sleep(POLL_S)
                    continue
                again = self.ray_command("logs", "--follow")
                error.add_note(f"the job {self.submission_id} may go on; `{again}` follows it")
                raise
            if details.status.is_terminal():
                if log.rest:
                    on_line(log.rest)
                return self._outcome(details)
            sleep(POLL_S)

    def _outcome(self, details: Any) -> Outcome:
        code = details.driver_exit_code
        # What follows is the log's end, which has been passed on.
        message = _gist(details.message or "").partition(", last available logs")[0]
        if code is None:
            raise ClusterError(
                f"the job {self.submission_id} ended without an exit code: {message}",
                retryable=True,
            )
        if code == NOT_FOUND:
            message += "; is raymerge installed on the cluster's head, and on its PATH?"
        # As a shell has it, of a driver that a signal ended.
        return Outcome(code if code >= 0 else 128 - code, message)


class _Log:
    """A driver's output, which the server tells from its beginning each time."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.rest = ""
        """What stands behind the last whole line."""
        self.has_grown = False
        """Whether the last look at it brought lines."""
        self._on_line = on_line
        self._passed_on = 0

    async def follow(self, texts: AsyncIterator[str]) -> None:
        """Pass on the lines that are new, until the log ends or the server hangs up."""
        number = 0
        self.rest, self.has_grown = "", False
        async for text in texts:
            *lines, self.rest = (self.rest + text).split("\n")
            for line in lines:
                number += 1
                if number > self._passed_on:
                    self._passed_on, self.has_grown = number, True
                    self._on_line(line)


def start_job(
    address: str,
    entrypoint: str,
    *,
    submission_id: str | None,
    runtime_env: Mapping[str, Any],
) -> Job:
    """Have a cluster run a command line on its head.

    Args:
        address: URL of the job server.
        entrypoint: For a shell there.
        submission_id: What the cluster calls the job; None leaves it to the cluster.
        runtime_env: Ray's; a local `working_dir` is sent.

    Raises:
        ClusterError: The job server cannot be reached, or refuses the job.
    """
    with _translated(address):
        # Ray's client would wait for ever.
        requests.get(f"{address}/api/version", timeout=KNOCK_S)
        # Else RAY_ADDRESS wins over the address that the client is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)
        client = JobSubmissionClient(address)
        found = client.submit_job(
            entrypoint=entrypoint, submission_id=submission_id, runtime_env=dict(runtime_env)
        )
    return Job(address, found, client)


@contextmanager
def _translated(address: str) -> Iterator[None]:
    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{address} asks for a token: {_gist(str(error))}. Set RAY_AUTH_MODE=token, and have "
            "the cluster's token in ~/.ray/auth_token or in RAY_AUTH_TOKEN."
        ) from error
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise ClusterError(
            f"no job server answers at {address}: {_root(error)}. Is the cluster up, and its "
            "dashboard's port forwarded (`ray dashboard CLUSTER.yaml`, `kubectl port-forward`)?",
            retryable=True,
        ) from error
    except (RuntimeError, ValueError) as error:
        passing = bool(_PASSING.search(str(error)))
        raise ClusterError(f"{address}: {_gist(str(error))}", retryable=passing) from error


def _root(error: BaseException) -> BaseException:
    """What a chain of errors began with."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _gist(text: str) -> str:
    """The line that says it: the first, or the last of a traceback."""
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if line.strip(".)")] or [text]
    return telling[-1 if "Traceback" in text else 0]
