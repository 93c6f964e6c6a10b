from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from raymerge.storage.failures import Cause, FailedError, read_failure
from raymerge.storage.patience import Patience, Retrier

FAST = Patience(total_s=1.0, first_contact_s=0.2, pause_s=0.001, longest_pause_s=0.01)
BUSY = "Server returned non-2xx status code: 503 Service Unavailable: <Code>SlowDown</Code>"
DENIED = "Server returned non-2xx status code: 403 Forbidden: <Code>AccessDenied</Code>"
REFUSED = 'HTTP error\n\nDebug source:\nHttpError { kind: Connect, message: "Connection refused" }'
NO_TOKEN = "Error performing token request: HTTP error"


def outcomes(*texts: str | None) -> Callable[[], int]:
    """A request that fails with these texts in turn, and succeeds at None."""
    left: Iterable[str | None] = iter(texts)

    def request() -> int:
        text = next(iter(left))
        if text is None:
            return 7
        raise OSError(text)

    return request


def retrier() -> Retrier:
    return Retrier(FAST, (OSError,))


def test_what_passes_is_asked_again_and_counted() -> None:
    asker = retrier()

    assert asker.ask(outcomes(BUSY, BUSY, None)) == 7
    assert asker.ask(outcomes(None)) == 7
    assert asker.retries == 2


def test_what_does_not_pass_is_asked_once() -> None:
    asker = retrier()

    with pytest.raises(FailedError) as caught:
        asker.ask(outcomes(DENIED))

    assert (caught.value.failure.cause, caught.value.tries) == (Cause.DENIED, 1)
    assert caught.value.__context__ is None
    assert asker.retries == 0


def test_a_mistake_of_ours_is_not_taken_for_a_failure() -> None:
    def mistaken() -> int:
        raise KeyError

    with pytest.raises(KeyError):
        retrier().ask(mistaken)


@pytest.mark.parametrize(
    ("before", "text", "least_s", "most_s"),
    [
        ((), REFUSED, 0.1, 0.4),  # nobody has answered: the address is probably wrong
        ((None,), REFUSED, 0.8, 1.5),  # somebody has: it is down for a moment
        ((), BUSY, 0.8, 1.5),  # a refusal is an answer
        ((), NO_TOKEN, 0.0, 0.1),  # there are no credentials
        ((None,), NO_TOKEN, 0.8, 1.5),  # there were; who gives them out is in trouble
    ],
)
def test_patience_depends_on_whether_there_was_an_answer(
    before: tuple[None, ...], text: str, least_s: float, most_s: float
) -> None:
    asker = retrier()
    for first in before:
        asker.ask(outcomes(first))
    start = time.monotonic()

    with pytest.raises(FailedError) as caught:
        asker.ask(outcomes(*[text] * 10_000))

    assert least_s <= time.monotonic() - start <= most_s
    assert caught.value.tries == asker.retries + 1


def test_retries_of_all_threads_are_counted() -> None:
    asker = retrier()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(asker.ask, [outcomes(BUSY, BUSY, BUSY, None) for _ in range(64)]))

    assert asker.retries == 3 * 64


def test_pauses_grow_and_are_scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    patience = Patience(total_s=60, pause_s=0.1, longest_pause_s=1.0)

    for _ in range(50):
        Retrier(patience, (OSError,)).ask(outcomes(*[BUSY] * 6, None))

    for number in range(6):
        most = min(1.0, 0.1 * 2**number)
        found = pauses[number::6]
        assert all(most / 2 <= pause <= most for pause in found)
        assert len(set(found)) > 40


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (
            FileNotFoundError("Object at location a not found: nothing"),
            Cause.MISSING,
            "a not found",
        ),
        (OSError(DENIED), Cause.DENIED, "403 AccessDenied"),
        (OSError(DENIED.replace("AccessDenied", "ExpiredToken")), Cause.EXPIRED, "ExpiredToken"),
        (OSError(BUSY), Cause.BUSY, "503 SlowDown"),
        (OSError(REFUSED), Cause.UNREACHABLE, "Connection refused"),
        (OSError("HttpError {\n kind: Timeout,"), Cause.BROKEN, "no byte came"),
        (OSError("HttpError {\n kind: Interrupted,"), Cause.BROKEN, "before its end"),
        (
            OSError(
                "Error performing list request: Error performing GET http://h/x in 1ms - Server "
                "returned non-2xx status code: 404 Not Found: <Code>NoSuchBucket</Code>"
                "<Message>The specified\nbucket does not exist</Message>"
            ),
            Cause.NO_BUCKET,
            "404 NoSuchBucket The specified bucket does not exist",
        ),
        (
            OSError(
                "Error performing token request: Error performing GET http://169.254.169.254/t in "
                "1ms - Server returned non-2xx status code: 429 Too Many Requests: "
            ),
            Cause.BUSY,
            "429",
        ),
        (ValueError("Account must be specified"), Cause.NO_ACCOUNT, "Account must be"),
        (OSError("something new"), Cause.UNKNOWN, "something new"),
    ],
)
def test_a_failure_is_read_from_its_text(error: OSError, cause: Cause, said: str) -> None:
    failure = read_failure(error)

    assert failure.cause is cause
    assert said in failure.said
    assert "\n" not in failure.said
