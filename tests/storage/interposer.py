"""A server between a client and S3 that spoils the next answers as told, and passes the others."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

Fault = Callable[[socket.socket, Callable[[], bytes]], None]
"""Given the client's connection and what asks the real server, whose whole answer it returns."""


class Interposer:
    """Listens on loopback; each connection is for one request."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: deque[Fault] = deque()
        """For the next requests, one each."""
        self.requests: list[str] = []
        """First lines of all that came."""

    def serve(self) -> None:
        """Answer until `close`."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _answer(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            request = _read_message(client)
            if not request:
                return
            self.requests.append(request.partition(b"\r\n")[0].decode())
            if self.faults:
                self.faults.popleft()(client, lambda: self._ask(request))
            else:
                client.sendall(self._ask(request))

    def _ask(self, request: bytes) -> bytes:
        assert self._upstream.hostname is not None
        assert self._upstream.port is not None
        place = self._upstream.hostname, self._upstream.port
        with socket.create_connection(place) as server:
            server.sendall(_closing(request))
            return b"".join(iter(lambda: server.recv(2**16), b""))


def _read_message(connection: socket.socket) -> bytes:
    """A request with its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(2**16)
        if not more:
            return b""
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < length:
        body += connection.recv(2**16)
    return head + b"\r\n\r\n" + body


def _closing(request: bytes) -> bytes:
    """The request of one who asks nothing else; the header is not part of the signature."""
    first, _, rest = request.partition(b"\r\n")
    return first + b"\r\nConnection: close\r\n" + rest


def refuse(status: str, code: str, message: str = "as told", headers: str = "") -> Fault:
    """An error as S3 words it."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return lambda client, _: client.sendall((head + body).encode())


def reset(client: socket.socket, _: Callable[[], bytes]) -> None:
    """No answer at all."""
    _reset(client)


def reset_in_body(client: socket.socket, ask: Callable[[], bytes]) -> None:
    """Half of the answer, then a reset."""
    answer = ask()
    client.sendall(answer[: len(answer) - 10])
    time.sleep(0.05)
    _reset(client)


def cut_short(client: socket.socket, ask: Callable[[], bytes]) -> None:
    """Half of the answer, then the end."""
    answer = ask()
    client.sendall(answer[: len(answer) - 10])


def stall(client: socket.socket, ask: Callable[[], bytes]) -> None:
    """Half of the answer, then nothing for as long as the client waits."""
    answer = ask()
    client.sendall(answer[: len(answer) - 10])
    client.recv(1)


def hang(client: socket.socket, _: Callable[[], bytes]) -> None:
    """Nothing for as long as the client waits."""
    client.recv(1)


def lose_answer(client: socket.socket, ask: Callable[[], bytes]) -> None:
    """The server does what it is asked, and the answer is lost."""
    ask()
    _reset(client)


def narrower(client: socket.socket, ask: Callable[[], bytes]) -> None:
    """One byte less than was asked for, in an answer that is whole in itself."""
    head, _, body = ask().partition(b"\r\n\r\n")
    lines = [_one_less(line) for line in head.split(b"\r\n")]
    client.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body[:-1])


def _one_less(line: bytes) -> bytes:
    name, _, value = line.partition(b": ")
    if name.lower() == b"content-length":
        return b"%s: %d" % (name, int(value) - 1)
    if name.lower() == b"content-range":
        start, _, rest = value.partition(b"-")
        stop, _, size = rest.partition(b"/")
        return b"%s: %s-%d/%s" % (name, start, int(stop) - 1, size)
    return line


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def interposed(upstream: str) -> Iterator[Interposer]:
    """An interposer in front of a server, for as long as the context lasts."""
    between = Interposer(upstream)
    threading.Thread(target=between.serve, daemon=True).start()
    try:
        yield between
    finally:
        between.close()
