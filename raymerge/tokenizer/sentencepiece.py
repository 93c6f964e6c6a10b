"""The pieces of a sentencepiece model: one message type of one protocol buffer.

ModelProto   1: repeated SentencePiece
SentencePiece   1: string piece   2: float score   3: type
"""

from __future__ import annotations

from collections.abc import Iterator

from raymerge.errors import SourceError

_PIECES, _PIECE = 1, 1
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


def pieces(raw: bytes, *, file: str, source: str) -> Iterator[str]:
    """The tokens of a model in the order of their ids.

    Raises:
        SourceError: It is not a sentencepiece model.
    """
    try:
        for field, content in _fields(raw):
            if field == _PIECES:
                yield next(
                    (text.decode() for number, text in _fields(content) if number == _PIECE), ""
                )
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise SourceError(
            f"{source}: {file} is not a sentencepiece model ({error}); fetch the file again",
            source=source,
            file=file,
        ) from error


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of every field that has a length; the others are passed over."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in (_DOUBLE, _FLOAT):
            position += 8 if kind == _DOUBLE else 4
        elif kind == _BYTES:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError(f"field of {length} bytes at {position} of {len(message)}")
            yield key >> 3, message[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {kind} at byte {position}")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 - the last byte has its high bit clear
            return value, position
        shift += 7
