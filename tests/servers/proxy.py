"""A proxy in front of an object store that counts what passes and spoils what it is told to.

Requests go on as they came, Host header included: that is what S3 clients sign, so the store has to
accept signatures made for the proxy's address, as SeaweedFS does.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from urllib.parse import urlsplit

from tests.servers.faults import Choice, Exchange, Fault, Kind, never
from tests.servers.http_stream import Head, body_of, read_head
from tests.servers.process import LOOPBACK


def _refusal(status: bytes, code: bytes, message: bytes) -> bytes:
    """An answer in the words of S3."""
    body = b"<Error><Code>%s</Code><Message>%s</Message></Error>" % (code, message)
    head = b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


_REFUSALS = {
    Kind.REFUSE: (503, _refusal(b"503 Slow Down", b"SlowDown", b"Reduce your request rate.")),
    Kind.EXPIRE: (400, _refusal(b"400 Bad Request", b"ExpiredToken", b"The token has expired.")),
}


class Proxy:
    """A running proxy. Its settings hold for the requests that come after they are made."""

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self._upstream = address.hostname, address.port
        self._listener = socket.create_server((LOOPBACK, 0), backlog=256)
        self.endpoint = f"http://{LOOPBACK}:{self._listener.getsockname()[1]}"
        self.choose: Choice = never
        """Which fault, if any, a request meets."""
        self.latency_s = 0.0
        """Before a request goes on."""
        self.bytes_per_s: float | None = None
        """What a connection may carry, each way; None is as much as it can."""
        self.log: list[Exchange] = []
        """Every request, in the order they came."""

    @property
    def requests(self) -> Counter[str]:
        """How many came, by method."""
        return Counter(exchange.method for exchange in self.log)

    @property
    def requests_by_object(self) -> Counter[str]:
        """How many came, by bucket and key."""
        return Counter(exchange.path for exchange in self.log)

    @property
    def bytes_down(self) -> int:
        """How much went to clients in bodies, spoilt ones too."""
        return sum(exchange.bytes_down for exchange in self.log)

    @property
    def bytes_up(self) -> int:
        """How much came from clients in bodies, spoilt ones too."""
        return sum(exchange.bytes_up for exchange in self.log)

    @property
    def faults(self) -> Counter[Kind]:
        """What went wrong, as told."""
        return Counter(exchange.fault.kind for exchange in self.log if exchange.fault)

    async def serve(self, stopped: asyncio.Event) -> None:
        """Answer until told to stop; what is under way then is cancelled with the loop."""
        server = await asyncio.start_server(self._converse, sock=self._listener)
        await stopped.wait()
        server.close()

    async def _converse(
        self, client: asyncio.StreamReader, answer_to: asyncio.StreamWriter
    ) -> None:
        # asyncio does so itself only for listeners of its own making.
        connection = answer_to.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A cancelled conversation is the proxy's end, and a broken one is the client's affair.
        with suppress(ConnectionError, asyncio.CancelledError):
            while head := await read_head(client):
                method, target, _ = head.first
                exchange = Exchange(method, target, head.header("range"))
                exchange.fault = self.choose(exchange)
                self.log.append(exchange)
                if not await self._exchange(exchange, head, client, answer_to):
                    break
        await _end(answer_to)

    async def _exchange(
        self, exchange: Exchange, head: Head, client: asyncio.StreamReader, to: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer; returns whether the connection is good for another."""
        if head.header("expect"):
            to.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = head.without("expect")
        fault = exchange.fault or Fault(Kind.DELAY)
        await asyncio.sleep(self.latency_s + fault.seconds * (fault.kind is Kind.DELAY))
        if fault.kind is Kind.LOSE:
            await client.read((head.length or 0) // 2)
            _reset(to)
            return False
        if fault.kind in _REFUSALS:
            async for piece in body_of(head, client):
                exchange.bytes_up += len(piece)
            exchange.status, answer = _REFUSALS[fault.kind]
            to.write(answer)
            await to.drain()
            return True
        return await self._pass_on(exchange, fault, head, client, to)

    async def _pass_on(
        self,
        exchange: Exchange,
        fault: Fault,
        head: Head,
        client: asyncio.StreamReader,
        to: asyncio.StreamWriter,
    ) -> bool:
        server, ask = await asyncio.open_connection(*self._upstream)
        try:
            ask.write(head.raw)
            async for piece in self._paced(body_of(head, client)):
                exchange.bytes_up += len(piece)
                ask.write(piece)
                await ask.drain()
            answer = await read_head(server)
            if answer is None:
                return False
            exchange.status = int(answer.first[1])
            return await self._answer(exchange, fault, answer, server, to)
        finally:
            await _end(ask)

    async def _answer(
        self,
        exchange: Exchange,
        fault: Fault,
        head: Head,
        server: asyncio.StreamReader,
        to: asyncio.StreamWriter,
    ) -> bool:
        length = 0 if exchange.method == "HEAD" or exchange.status == 204 else head.length
        spoilt = fault.kind is not Kind.DELAY
        # A body whose length is not told beforehand is cut before its first byte.
        left = (length or 0) // 2 if spoilt else None
        if length != 0 or not spoilt:
            to.write(head.raw)
        if length != 0:
            async with aclosing(self._paced(body_of(head, server))) as pieces:
                async for piece in pieces:
                    sent = piece[:left]
                    left = None if left is None else left - len(sent)
                    exchange.bytes_down += len(sent)
                    to.write(sent)
                    await to.drain()
                    if left == 0:
                        break
        if fault.kind is Kind.STALL:
            await asyncio.sleep(fault.seconds)
        elif fault.kind is Kind.RESET:
            _reset(to)
        return not spoilt and head.header("connection").lower() != "close"

    async def _paced(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            if self.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / self.bytes_per_s)
            yield piece


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side is told of a reset."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in a thread of its own, for as long as the context lasts."""
    running = Proxy(upstream)
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(running.serve(stopped))

    thread = threading.Thread(target=serve, name="proxy")
    thread.start()
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
