"""An S3 that does not know conditions: it writes whatever it is told to, as older ones do.

Beside that it does what a client needs to write and read small objects: PUT, GET, HEAD, DELETE,
listing, uploads in parts. Nothing is signed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

_LISTING = (
    "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{}</KeyCount>{}</ListBucketResult>"
)
_CONTENT = (
    "<Contents><Key>{}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>"
    "<ETag>{}</ETag><Size>{}</Size></Contents>"
)
_BEGUN = "<InitiateMultipartUploadResult><UploadId>{}</UploadId></InitiateMultipartUploadResult>"
_DONE = "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>"
_KEY = re.compile(r"<Key>([^<]*)</Key>")


@dataclass
class Careless:
    """What it holds, by key, and what is being uploaded, by number."""

    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, list[bytes]] = field(default_factory=dict)
    shows_aborted: bool = False
    """Whether an aborted upload becomes an object."""
    numbers: Iterator[int] = field(default_factory=itertools.count)


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Careless

    def log_message(self, *_: object) -> None:
        """Say nothing: stderr is the tests'."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        key = url.path.lstrip("/").partition("/")[2]
        if "uploads" in query or "uploadId" in query:
            self._upload(key, query.get("uploadId", [""])[0], body)
        elif "delete" in query:
            keys = _KEY.findall(body.decode())
            for each in keys:
                self.store.objects.pop(each, None)
            deleted = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
            self._send(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        elif "list-type" in query:
            self._list(query.get("prefix", [""])[0])
        else:
            self._object(key, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _object(self, key: str, body: bytes) -> None:
        objects = self.store.objects
        if self.command == "PUT":
            objects[key] = body
            self._send(200, etag=_etag(body))
        elif self.command == "DELETE":
            objects.pop(key, None)
            self._send(204)
        elif key in objects:
            self._send(200, objects[key], etag=_etag(objects[key]))
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _list(self, prefix: str) -> None:
        found = {k: v for k, v in self.store.objects.items() if k.startswith(prefix)}
        each = (_CONTENT.format(key, _etag(data), len(data)) for key, data in found.items())
        self._send(200, _LISTING.format(len(found), "".join(each)).encode())

    def _upload(self, key: str, number: str, body: bytes) -> None:
        uploads = self.store.uploads
        if self.command == "POST" and not number:
            number = str(next(self.store.numbers))
            uploads[number] = []
            self._send(200, _BEGUN.format(number).encode())
        elif self.command == "PUT":
            uploads[number].append(body)
            self._send(200, etag=_etag(body))
        elif self.command == "DELETE":
            parts = uploads.pop(number)
            if self.store.shows_aborted:
                self.store.objects[key] = b"".join(parts)
            self._send(204)
        else:
            self.store.objects[key] = b"".join(uploads.pop(number))
            self._send(200, _DONE.format(_etag(self.store.objects[key])).encode())

    def _send(self, status: int, body: bytes = b"", *, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def run_careless() -> Iterator[Careless]:
    """Start one on a free port of loopback."""
    store = Careless()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"store": store}))
    server.daemon_threads = True
    store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
