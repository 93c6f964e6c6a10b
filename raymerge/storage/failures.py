"""What a request failed of, read from what obstore says.

obstore raises a handful of types whose text holds the status, the server's answer and a debug dump
of several dozen lines. Here that text becomes a `Failure`: a cause to act on and one line without
secrets to show. What a person is told to do about it stands in `advice`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from raymerge.storage.redaction import redact


class Cause(Enum):
    """Why a request failed, as far as the caller acts on it."""

    MISSING = auto()
    """There is no such object."""
    NO_BUCKET = auto()
    EXISTS = auto()
    """There is an object where none may be."""
    CHANGED = auto()
    """The object is not the one that was named by its ETag."""
    DENIED = auto()
    EXPIRED = auto()
    NO_CREDENTIALS = auto()
    REGION = auto()
    CLOCK = auto()
    UNREACHABLE = auto()
    """No connection: refused, no such host, no answer to the first packet."""
    UNTRUSTED = auto()
    """The server's certificate."""
    NOT_TLS = auto()
    """The server answered in clear where https was asked for."""
    NO_ACCOUNT = auto()
    """Azure's storage account is not named."""
    BUSY = auto()
    """The server asks to come back later, or failed itself."""
    BROKEN = auto()
    """The answer did not come, or not to its end."""
    UNKNOWN = auto()


RETRYABLE = frozenset((Cause.UNREACHABLE, Cause.BUSY, Cause.BROKEN))


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that failed."""

    cause: Cause
    said: str
    """What the client or the server said, one line without secrets."""

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.cause in RETRYABLE


class FailedError(Exception):
    """A request failed for good. Storage turns it into an error that names source and file."""

    def __init__(self, failure: Failure, *, tries: int = 1, seconds: float = 0.0) -> None:
        super().__init__(failure.said)
        self.failure = failure
        self.tries = tries
        self.seconds = seconds


_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_SAID = re.compile(r"<Message>([^<]*)")
_JSON_SAID = re.compile(r'"(?:message|error_description)":\s*"([^"]*)')
_HTTP_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_CERTIFICATE = re.compile(r"InvalidCertificate\((?:\s*Other\(\s*OtherError\()?\s*(\w+)")
_SYSTEM = re.compile(r'(?:message|error): "([^"]+)"')
_ASKS_FOR_TOKEN = re.compile(
    r"token request|latest/api/token|meta-data/iam|metadata/identity|computeMetadata"
    r"|AssumeRoleWithWebIdentity|AWS_PROFILE|credential provider|[Cc]redentials? (?:file|request)"
    r"|service account|Missing (?:AccessKeyId|SecretAccessKey)"
)

_BY_CODE = {
    "NoSuchBucket": Cause.NO_BUCKET,
    "ContainerNotFound": Cause.NO_BUCKET,
    "BlobAlreadyExists": Cause.EXISTS,
    "ExpiredToken": Cause.EXPIRED,
    "TokenRefreshRequired": Cause.EXPIRED,
    "RequestExpired": Cause.EXPIRED,
    "RequestTimeTooSkewed": Cause.CLOCK,
    "AuthorizationHeaderMalformed": Cause.REGION,
    "PermanentRedirect": Cause.REGION,
    "IllegalLocationConstraintException": Cause.REGION,
    "InvalidToken": Cause.DENIED,
    "RequestTimeout": Cause.BROKEN,
    "SlowDown": Cause.BUSY,
    "ConditionalRequestConflict": Cause.BUSY,
    "OperationAborted": Cause.BUSY,
    # Of an upload that ended when its answer was lost on the way.
    "NoSuchUpload": Cause.BROKEN,
}
"""Codes that say more than the status they come with."""
_BY_STATUS = {
    "301": Cause.REGION,
    "307": Cause.REGION,
    "401": Cause.DENIED,
    "403": Cause.DENIED,
    "404": Cause.MISSING,
    "408": Cause.BROKEN,
    "409": Cause.BUSY,
    "412": Cause.CHANGED,
    "416": Cause.CHANGED,
    "429": Cause.BUSY,
    "500": Cause.BUSY,
    "502": Cause.BUSY,
    "503": Cause.BUSY,
    "504": Cause.BUSY,
    "509": Cause.BUSY,
}
_BY_WORDS = {
    "InvalidCertificate(": Cause.UNTRUSTED,
    "InvalidContentType": Cause.NOT_TLS,
    "kind: Builder": Cause.UNKNOWN,
    "kind: Connect,": Cause.UNREACHABLE,
    "HttpError {": Cause.BROKEN,
    "UnexpectedRange": Cause.BROKEN,
    "body error": Cause.BROKEN,
    "multipart response": Cause.BROKEN,
    "redirect without LOCATION": Cause.REGION,
    "Account must be specified": Cause.NO_ACCOUNT,
}
"""Where there was no answer with a status; the first that is found counts."""
_BY_TYPE = {
    "FileNotFoundError": Cause.MISSING,
    "AlreadyExistsError": Cause.EXISTS,
    "PreconditionError": Cause.CHANGED,
    "NotModifiedError": Cause.EXISTS,
    "PermissionDeniedError": Cause.DENIED,
    "UnauthenticatedError": Cause.DENIED,
}


def read_failure(error: BaseException) -> Failure:
    """What an exception of obstore means."""
    text = str(error)
    return Failure(_cause(type(error).__name__, text), redact(_said(text)))


def _cause(kind: str, text: str) -> Cause:
    head = text.partition("\n\nDebug source")[0]
    code = _CODE.search(head)
    by_code = _BY_CODE.get(code[1]) if code else None
    return by_code or _of_credentials(head) or _of_status(kind, head) or _of_connection(kind, text)


def _of_credentials(head: str) -> Cause | None:
    if not _ASKS_FOR_TOKEN.search(head):
        return None
    # Many workers that ask for a token at once are told to come back, like for anything else.
    return Cause.BUSY if _of_status("", head) is Cause.BUSY else Cause.NO_CREDENTIALS


def _of_status(kind: str, head: str) -> Cause | None:
    status = _STATUS.search(head)
    if status and kind == "AlreadyExistsError" and status[1] != "409":
        return Cause.EXISTS
    return _BY_STATUS.get(status[1], Cause.UNKNOWN) if status else None


def _of_connection(kind: str, text: str) -> Cause:
    for words, cause in _BY_WORDS.items():
        if words in text:
            return cause
    return _BY_TYPE.get(kind, Cause.UNKNOWN)


def _said(text: str) -> str:
    """The status with the server's own words, or the system's, or the client's first line."""
    head = text.partition("\n\nDebug source")[0]
    status, code = _STATUS.search(head), _CODE.search(head)
    message = _SAID.search(head) or _JSON_SAID.search(head)
    if status:
        words = [status[1], code[1] if code else "", message[1] if message else ""]
        return _one_line(" ".join(word for word in words if word))
    if http := _HTTP_KIND.search(text):
        system = _SYSTEM.findall(text) or _CERTIFICATE.findall(text)
        known = _HTTP_WORDS.get(http[1], "the connection failed")
        return _one_line(str(system[-1]) if system else known)
    return _one_line(head.rpartition(" error: ")[2] or head)


_HTTP_WORDS = {
    "Timeout": "no byte came within the time there is",
    "Interrupted": "the answer ended before its end",
    "Connect": "no connection",
}


def _one_line(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
