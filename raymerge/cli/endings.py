"""How a command ends: whatever stops it becomes a message on stderr and an exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from raymerge.errors import RaymergeError, StorageError

INTERRUPTED = 130
TERMINATED = 143


class TerminatedError(BaseException):
    """SIGTERM: like KeyboardInterrupt, not an error anyone should catch on the way."""


@contextmanager
def reported(*, as_json: bool, resume: str | None = None) -> Iterator[None]:
    """Turn what ends a command into a message and an exit code.

    Args:
        as_json: Print an error as a document on stdout, too.
        resume: What to do after an interruption.
    """
    previous = signal.signal(signal.SIGTERM, _terminate)
    # A terminal that closes, unless nohup or tmux keeps us from it.
    hang_up = signal.getsignal(signal.SIGHUP)
    if hang_up is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        yield
    except RaymergeError as error:
        _fail(error, as_json=as_json)
    except BrokenPipeError:
        raise  # whoever read our output has enough; click ends quietly
    except OSError as error:
        # The storage room names what it knows; this is a file nobody thought of.
        _fail(StorageError(f"{error.filename or 'a file'}: {error.strerror}"), as_json=as_json)
    except MemoryError:
        _fail(RaymergeError("out of memory; lower --memory or --workers"), as_json=as_json)
    except KeyboardInterrupt:
        _stopped("interrupted", resume, INTERRUPTED)
    except TerminatedError:
        _stopped("terminated", resume, TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGHUP, hang_up)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TerminatedError


def _hang_up(_signal: int, _frame: FrameType | None) -> None:
    # Whoever keeps a SIGTERM for later keeps this one.
    signal.raise_signal(signal.SIGTERM)


def _fail(error: RaymergeError, *, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": error.as_json()}))  # noqa: T201 - data
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)  # noqa: T201
    sys.exit(error.exit_code)


def _stopped(what: str, resume: str | None, code: int) -> NoReturn:
    with suppress(OSError):  # a terminal that is gone
        print(f"{what}; {resume}" if resume else what, file=sys.stderr)  # noqa: T201
    sys.exit(code)
