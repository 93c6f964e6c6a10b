"""The smallest signed S3 request: for what a storage library does not do, such as make a bucket."""

from __future__ import annotations

import hashlib
import hmac
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection

_UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    access_key: str
    secret_key: str
    region: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


def request(
    identity: Identity,
    method: str,
    endpoint: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Reply:
    """Send one signed request, to `endpoint` with a path that begins with the bucket."""
    host = urllib.parse.urlsplit(endpoint).netloc
    quoted = urllib.parse.quote(f"/{path}", safe="/~")
    pairs = sorted((query or {}).items())
    asked = urllib.parse.urlencode(pairs, quote_via=urllib.parse.quote, safe="~")
    signed = {"host": host, "x-amz-date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"}
    signed["x-amz-content-sha256"] = _UNSIGNED
    authorization = _authorization(identity, method, quoted, asked, signed)
    connection = HTTPConnection(host, timeout=30)
    try:
        sent = {**signed, "Authorization": authorization, **(headers or {})}
        connection.request(method, f"{quoted}?{asked}" if asked else quoted, body, sent)
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, named, answer.read())
    finally:
        connection.close()


def _authorization(
    identity: Identity, method: str, path: str, query: str, signed: Mapping[str, str]
) -> str:
    date = signed["x-amz-date"]
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{_UNSIGNED}"
    scope = f"{date[:8]}/{identity.region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{identity.secret_key}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={identity.access_key}/{scope}"
    return f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={key.hex()}"
