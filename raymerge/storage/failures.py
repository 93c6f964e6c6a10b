"""What a request failed of, read from what obstore says, and how a person is told.

obstore raises a handful of types whose text holds the status, the server's answer and a debug dump
of several dozen lines. Here that text becomes a `Failure`: a cause to act on and one line without
secrets to show.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum, auto

from raymerge.storage.urls import Location, Scheme


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
_SYSTEM = re.compile(r'(?:message|error): "([^"]+)"')
_ASKS_FOR_TOKEN = re.compile(
    r"token request|latest/api/token|meta-data/iam|metadata/identity|computeMetadata"
    r"|AssumeRoleWithWebIdentity|AWS_PROFILE|credential provider|[Cc]redentials? (?:file|request)"
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
    return Cause.NO_CREDENTIALS if _ASKS_FOR_TOKEN.search(head) else None


def _of_status(kind: str, head: str) -> Cause | None:
    status = _STATUS.search(head)
    if status and kind == "AlreadyExistsError" and status[1] != "409":
        return Cause.EXISTS
    return _BY_STATUS.get(status[1], Cause.UNKNOWN) if status else None


def _of_connection(kind: str, text: str) -> Cause:
    http = _HTTP_KIND.search(text)
    if "certificate" in text:
        return Cause.UNTRUSTED
    if http:
        return Cause.UNREACHABLE if http[1] == "Connect" else Cause.BROKEN
    if "UnexpectedRange" in text:
        return Cause.BROKEN
    if "redirect without LOCATION" in text:
        return Cause.REGION
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
        system = _SYSTEM.findall(text)
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


_SECRET = re.compile(
    r"""
      (?<=://)[^/\s@:]+:[^/\s@]+(?=@)                             # user:password@host
    | \b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}                      # access key ids
    | \b(?:hf_|ya29\.|eyJ)[A-Za-z0-9_\-.]{16,}                    # tokens of Hub, Google, JWT
    | (?<=[?&;\s"])(?:sig|x-amz-(?:signature|credential|security-token)|access_token|AccountKey)
      =[^&\s"<>]+
    | (?:bearer|sharedkey|aws4-hmac-sha256)\s+[^\s"<>]+(?:[^<>"\n]*)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN$|TOKEN_|_KEY$|ACCESS_KEY|MASTER_KEY|SAS|PASSWORD|SERVICE_ACCOUNT_KEY"
)
_SHORTEST_SECRET = 8
"""Shorter values of the environment are words such as `test`, found in any sentence."""


def redact(text: str) -> str:
    """The text with whatever looks like a credential, or stands in the environment as one, gone."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, "[redacted]")
    return _SECRET.sub("[redacted]", text)


def explain(failure: Failure, location: Location) -> str:
    """The cause and what to do about it, behind the name of what could not be done."""
    what, advice = _WORDS[failure.cause]
    advice = _ADVICE.get((_family(location.scheme), failure.cause), advice)
    text = f"{what} ({failure.said}). {advice}" if advice else f"{what} ({failure.said})."
    return text.replace("{root}", location.root)


def _family(scheme: Scheme) -> Scheme:
    return Scheme.AZ if scheme in {Scheme.ABFS, Scheme.ABFSS} else scheme


_WORDS = {
    Cause.MISSING: ("it is not there", ""),
    Cause.NO_BUCKET: (
        "there is no {root}",
        "Check the name, and the endpoint if it is not the cloud's own.",
    ),
    Cause.EXISTS: ("there is one already", ""),
    Cause.CHANGED: ("it is not the object that was expected", ""),
    Cause.DENIED: ("access was denied", "Check the credentials in the environment."),
    Cause.EXPIRED: ("the credentials have expired", "Log in again, or get a new token."),
    Cause.NO_CREDENTIALS: ("no usable credentials were found", ""),
    Cause.REGION: ("the bucket lies in another region", "Set AWS_REGION to its region."),
    Cause.CLOCK: ("this machine's clock is wrong", "Set it; signed requests carry the time."),
    Cause.UNREACHABLE: (
        "the server could not be reached",
        "Check the endpoint, the network and the proxy.",
    ),
    Cause.UNTRUSTED: (
        "the server's certificate is not trusted",
        "Check the endpoint; `--storage-option allow_invalid_certificates=true` reads it anyway.",
    ),
    Cause.BUSY: ("the server refused for the moment", "Run it again later, or with fewer workers."),
    Cause.BROKEN: ("the answer did not come whole", "Run it again; `raymerge doctor` measures it."),
    Cause.UNKNOWN: ("the request failed", ""),
}
_ADVICE = {
    (Scheme.S3, Cause.DENIED): (
        "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and the rights they have on "
        "{root}; a public bucket is read with `--storage-option skip_signature=true`."
    ),
    (Scheme.S3, Cause.EXPIRED): (
        "Log in again (`aws sso login`), or set a new AWS_SESSION_TOKEN with its keys."
    ),
    (Scheme.S3, Cause.NO_CREDENTIALS): (
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with raymerge[aws] "
        "installed, or run where there is a role (EC2, ECS, EKS); a public bucket is read with "
        "`--storage-option skip_signature=true`."
    ),
    (Scheme.GS, Cause.DENIED): (
        "Check the account of `gcloud auth application-default login` or "
        "GOOGLE_APPLICATION_CREDENTIALS and its rights on {root}; a public bucket is read with "
        "`--storage-option skip_signature=true`."
    ),
    (Scheme.GS, Cause.NO_CREDENTIALS): (
        "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS or "
        "GOOGLE_SERVICE_ACCOUNT to a key file; a public bucket is read with "
        "`--storage-option skip_signature=true`."
    ),
    (Scheme.AZ, Cause.DENIED): (
        "Check AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or the identity and its role "
        "on {root} (Storage Blob Data Reader or Contributor)."
    ),
    (Scheme.AZ, Cause.NO_CREDENTIALS): (
        "Set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID with "
        "AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or AZURE_USE_AZURE_CLI=true after `az login`; a "
        "public container is read with `--storage-option skip_signature=true`."
    ),
}
