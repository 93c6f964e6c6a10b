"""What went wrong at the Hub, in words: the repository, the cause, and what to do about it.

The library's own errors are never quoted whole, nor kept as a cause: they hold the request, with
its token and with addresses that are signed for whoever reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, errors, get_token

from raymerge.errors import RaymergeError, SourceError, StorageError
from raymerge.storage.hub_names import HubName

_LONGEST_QUOTE = 200
_TIMED_OUT, _TOO_MANY, _SERVER = 408, 429, 500
_LOG_IN = "`hf auth login` or HF_TOKEN gives one"
_ADVICE = {
    401: f"; the token is wrong or has expired, {_LOG_IN}",
    403: f"; a token with that right is needed, {_LOG_IN}",
    429: "; the rate limit is used up, and a token raises it if there is none",
}


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return status in {_TIMED_OUT, _TOO_MANY} or status >= _SERVER
    return isinstance(error, httpx2.TransportError)


@contextmanager
def in_words(
    name: HubName, kind: type[SourceError | StorageError], *, file: str | None = None
) -> Iterator[None]:
    """Turn whatever the Hub's library raises into an error of ours."""
    try:
        yield
    except RaymergeError:
        raise
    except (httpx2.HTTPError, errors.HFValidationError, OSError, RuntimeError, ValueError) as error:
        cause = _cause(error)
        where = f"{name.location}/{file}" if file else name.location
        raise kind(
            f"{where}: {_why(cause, name, file)}",
            source=name.location,
            file=file,
            retryable=passes(cause),
        ) from None


def _cause(error: BaseException) -> BaseException:
    """Where the library says only that it could not, what it had caught."""
    while isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and error.__cause__:
        error = error.__cause__
    return error


def _why(error: BaseException, name: HubName, file: str | None) -> str:
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, name, file)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"it is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch "
            f"it; unset that, or `hf download {name.repo} --revision {name.revision}` elsewhere"
        )
    if isinstance(error, httpx2.TimeoutException):
        return f"{endpoint()} does not answer ({type(error).__name__}); check network and proxy"
    if isinstance(error, httpx2.TransportError):
        return f"{endpoint()} cannot be reached ({_quoted(error)}); check network and proxy"
    return f"{type(error).__name__}: {_quoted(error)}"


def _refused(error: errors.HfHubHTTPError, name: HubName, file: str | None) -> str:
    """Why the Hub did not do what it was asked. The order is from special to general."""
    match error:
        case errors.GatedRepoError():
            page = f"{endpoint()}/{name.repo}"
            why = f"it is gated, and access was not granted; accept its terms at {page}. {_own()}"
        case errors.RepositoryNotFoundError():
            why = f"there is no such repository, or it is private; check the name. {_own()}"
        case errors.RevisionNotFoundError():
            why = f"{name.repo} has no revision {name.revision}; give a branch, tag or full commit"
        case errors.EntryNotFoundError():
            why = f"there is no file {file or 'of that name'} at that revision"
        case errors.DisabledRepoError():
            why = "the Hub has disabled this repository"
        case _:
            said = _quoted(error.server_message or error.response.reason_phrase)
            status = error.response.status_code
            advice = _ADVICE.get(status, "")
            why = f"HTTP {status}: {said}{advice}"
    return why


def _own() -> str:
    return "The token in use has no access." if get_token() else f"There is no token: {_LOG_IN}."


def endpoint() -> str:
    """Where the Hub is, without a user name or a password that its URL may have."""
    parts = urlsplit(constants.ENDPOINT)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _quoted(error: BaseException | str) -> str:
    """What a server or a library says, on one line, short, and never with the token in it."""
    text = " ".join(str(error).split())
    if token := get_token():
        text = text.replace(token, "...")
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
