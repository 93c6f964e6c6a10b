"""HTTP messages read from a stream and passed on byte by byte, their headers left as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

_PIECE_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Head:
    """A message before its body."""

    raw: bytes
    """With the empty line at its end."""

    @property
    def first(self) -> list[str]:
        """The three words of the first line."""
        return self.raw.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)

    def header(self, name: str) -> str:
        """A header's value; empty if there is none."""
        for line in self.raw.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.encode():
                return value.strip().decode("latin-1")
        return ""

    def without(self, name: str) -> Head:
        """The message with no such header."""
        lines = self.raw.split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(name.encode() + b":")]
        return Head(b"\r\n".join(kept))

    @property
    def length(self) -> int | None:
        """Of the body; None if only its end will tell."""
        if self.header("transfer-encoding").lower() == "chunked":
            return None
        return int(self.header("content-length") or 0)


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next message's head; None if the other side has ended."""
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def body_of(head: Head, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """A body's bytes in pieces, framing and all."""
    if head.length is not None:
        async for piece in _exactly(head.length, reader):
            yield piece
        return
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        async for piece in _exactly(size + 2, reader):
            yield piece


async def _exactly(number: int, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while number:
        piece = await reader.read(min(number, _PIECE_BYTES))
        if not piece:
            raise ConnectionResetError("the body ended early")
        number -= len(piece)
        yield piece
