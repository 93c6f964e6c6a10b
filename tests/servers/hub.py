"""A small Hub on loopback that the unmodified huggingface_hub is content with, and its CDN.

It serves what raymerge needs of the real one: model info, resolve with ranges, redirects of large
files to another port under addresses that are signed and expire, private and gated repositories,
rate limits, and uploads: preupload, LFS batch, PUT, one commit. Every request is counted by kind.
It has no Xet: the library falls back to plain HTTP, as it does with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from threading import Thread

from tests.servers.hub_answers import HubAnswers
from tests.servers.hub_state import Hub


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no event."""


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Start a Hub and its CDN on free ports of loopback."""
    hub = Hub()
    handler = type("Handler", (HubAnswers,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
