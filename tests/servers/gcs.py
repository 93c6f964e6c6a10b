"""Google Cloud Storage as far as its XML API is spoken here, in memory.

The emulator there is lacks the part of that API by which obstore writes. Objects, ranges,
generations and preconditions, uploads in parts and listings are as Google documents them, written
from that and from what obstore sends. What this cannot tell of the real one: how credentials become
the bearer token it asks for, what rights a token has, quotas and rate limits, and whatever the
documents do not say. Old generations are gone, and ETags are MD5 even of objects made of parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.servers.gcs_objects import Bucket, RefusedError, Version
from tests.servers.process import LOOPBACK

_TOKEN = "not-a-secret-but-a-token"
_BUCKET = "models"
_LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Gcs:
    """A place in a bucket, and what a client needs to reach it."""

    endpoint: str
    token: str
    bucket: str
    prefix: str
    """Ends in a slash, unless it is empty. Each test has its own."""
    inside: Bucket
    """What the server holds."""

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that lead obstore here."""
        return {
            "GOOGLE_BASE_URL": self.endpoint,
            "GOOGLE_BEARER_TOKEN": self.token,
            "GOOGLE_ALLOW_HTTP": "true",
        }

    def url(self, path: str = "") -> str:
        """`gs://` of a path here."""
        return f"gs://{self.bucket}/{self.prefix}{path}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        """Say nothing: stderr is the tests'."""

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        pairs = parse_qs(url.query, keep_blank_values=True)
        self.query = {name: values[0] for name, values in pairs.items()}
        bucket, _, self.key = unquote(url.path).removeprefix("/").partition("/")
        try:
            self._admit(bucket)
            getattr(self, f"_do_{self.command.lower()}")()
        except RefusedError as refused:
            self._answer(refused.status, f"<Error><Code>{refused.code}</Code></Error>".encode())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _admit(self, bucket: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            raise RefusedError(401, "AuthenticationRequired")
        if bucket != _BUCKET:
            raise RefusedError(404, "NoSuchBucket")

    def _do_get(self) -> None:
        if not self.key:
            self._list()
            return
        version = self.bucket.get(self.key)
        if self.query.get("generation", str(version.generation)) != str(version.generation):
            raise RefusedError(404, "NoSuchKey")
        if self.headers.get("If-Match", version.e_tag) not in {version.e_tag, "*"}:
            raise RefusedError(412, "PreconditionFailed")
        if self.headers.get("If-None-Match") in {version.e_tag, "*"}:
            raise RefusedError(304, "NotModified")
        start, stop = self._range(len(version.body))
        headers = dict(_headers(version))
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(version.body)}"
        self._answer(206 if "Range" in self.headers else 200, version.body[start:stop], headers)

    _do_head = _do_get

    def _do_put(self) -> None:
        condition = self.headers.get("x-goog-if-generation-match")
        if "uploadId" in self.query:
            number = int(self.query["partNumber"])
            made = self.bucket.part(self.query["uploadId"], number, self.body)
        elif copied := self.headers.get("x-goog-copy-source"):
            source = unquote(copied).removeprefix("/").partition("/")[2]
            made = self.bucket.put(self.key, self.bucket.get(source).body, condition)
        else:
            made = self.bucket.put(self.key, self.body, condition)
        self._answer(200, b"", _headers(made))

    def _do_post(self) -> None:
        if "uploads" in self.query:
            upload = f"<UploadId>{self.bucket.begin(self.key)}</UploadId>"
            self._result("InitiateMultipartUploadResult", upload)
            return
        parts = [
            (int(part.findtext("{*}PartNumber", "0")), part.findtext("{*}ETag", "").strip('"'))
            for part in ET.fromstring(self.body).iterfind("{*}Part")
        ]
        made = self.bucket.complete(self.query["uploadId"], parts)
        tag = f"<ETag>{escape(made.e_tag)}</ETag>"
        self._result("CompleteMultipartUploadResult", tag, _headers(made))

    def _do_delete(self) -> None:
        if "uploadId" in self.query:
            self.bucket.abort(self.query["uploadId"])
        else:
            self.bucket.delete(self.key, self.headers.get("x-goog-if-generation-match"))
        self._answer(204, b"")

    def _list(self) -> None:
        found, prefixes, following = self.bucket.page(self.query)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(version.body)}</Size>"
            f"<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(version.e_tag)}</ETag></Contents>"
            for key, version in found
        )
        for prefix in prefixes:
            contents += f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>"
        if following:
            token = f"<NextContinuationToken>{escape(following)}</NextContinuationToken>"
            contents += f"<IsTruncated>true</IsTruncated>{token}"
        self._result("ListBucketResult", contents)

    def _range(self, size: int) -> tuple[int, int]:
        match = _RANGE.fullmatch(self.headers.get("Range", "bytes=0-"))
        assert match is not None, self.headers["Range"]
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if "Range" in self.headers and start >= size:
            raise RefusedError(416, "InvalidRange")
        return start, stop

    def _result(self, name: str, inner: str, headers: Mapping[str, str] | None = None) -> None:
        self._answer(200, f"<{name}>{inner}</{name}>".encode(), headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in {204, 304}:
            self.wfile.write(body)


def _headers(version: Version) -> dict[str, str]:
    generation = str(version.generation)
    return {"ETag": version.e_tag, "Last-Modified": _LONG_AGO, "x-goog-generation": generation}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no event."""


@contextmanager
def gcs() -> Iterator[Gcs]:
    """A server with one empty bucket, in threads of this process."""
    inside = Bucket()
    with _Server((LOOPBACK, 0), type("Answers", (_Answers,), {"bucket": inside})) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,), name="gcs")
        thread.start()
        try:
            address = f"http://{LOOPBACK}:{server.server_address[1]}"
            yield Gcs(address, _TOKEN, _BUCKET, "", inside)
        finally:
            server.shutdown()
            thread.join()
