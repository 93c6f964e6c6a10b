"""A bucket in memory: objects with generations, and uploads in parts."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

_MIN_PART_BYTES = 5 << 20


class RefusedError(Exception):
    """What a request is answered with instead."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Version:
    """An object's content."""

    body: bytes
    generation: int
    e_tag: str
    """In its quotes."""


@dataclass(slots=True)
class Bucket:
    """What there is. Every method is one step to all others."""

    objects: dict[str, Version] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[int, Version]]] = field(default_factory=dict)
    """Under way: key, and parts by number."""
    _generations: count[int] = field(default_factory=lambda: count(1_700_000_000_000_000))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def get(self, key: str) -> Version:
        """The object as it is now."""
        with self._lock:
            if key not in self.objects:
                raise RefusedError(404, "NoSuchKey")
            return self.objects[key]

    def put(self, key: str, body: bytes, if_generation: str | None) -> Version:
        """Make an object or replace it."""
        with self._lock:
            self._check(key, if_generation)
            self.objects[key] = self._version(body)
            return self.objects[key]

    def delete(self, key: str, if_generation: str | None) -> None:
        """Remove an object."""
        with self._lock:
            self.get(key)
            self._check(key, if_generation)
            del self.objects[key]

    def begin(self, key: str) -> str:
        """Begin an upload in parts; returns its id."""
        with self._lock:
            upload = f"upload-{next(self._generations)}"
            self.uploads[upload] = key, {}
            return upload

    def part(self, upload: str, number: int, body: bytes) -> Version:
        """Take a part, in place of any other of its number."""
        with self._lock:
            _, parts = self._upload(upload)
            parts[number] = self._version(body)
            return parts[number]

    def complete(self, upload: str, named: Sequence[tuple[int, str]]) -> Version:
        """Make the object of the parts named by number and ETag."""
        with self._lock:
            key, parts = self._upload(upload)
            numbers = [number for number, _ in named]
            if numbers != sorted(set(numbers)):
                raise RefusedError(400, "InvalidPartOrder")
            if any(n not in parts or parts[n].e_tag.strip('"') != tag for n, tag in named):
                raise RefusedError(400, "InvalidPart")
            bodies = [parts[number].body for number in numbers]
            if any(len(body) < _MIN_PART_BYTES for body in bodies[:-1]):
                raise RefusedError(400, "EntityTooSmall")
            made = self.put(key, b"".join(bodies), None)
            del self.uploads[upload]
            return made

    def abort(self, upload: str) -> None:
        """Forget an upload and its parts."""
        with self._lock:
            self._upload(upload)
            del self.uploads[upload]

    def page(self, query: Mapping[str, str]) -> tuple[list[tuple[str, Version]], list[str], str]:
        """A page of a listing: objects, common prefixes, and where the next page begins, if any."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        left = int(query.get("max-keys", 1000))
        found: list[tuple[str, Version]] = []
        prefixes: list[str] = []
        with self._lock:
            for key in sorted(key for key in self.objects if key.startswith(prefix)):
                head, cut, _ = key[len(prefix) :].partition(delimiter or "\0")
                name = prefix + head + delimiter if cut else key
                if name <= after or name in prefixes[-1:]:
                    continue
                if not left:
                    return found, prefixes, max([*prefixes[-1:], *(key for key, _ in found[-1:])])
                left -= 1
                if cut:
                    prefixes.append(name)
                else:
                    found.append((key, self.objects[key]))
        return found, prefixes, ""

    def _check(self, key: str, if_generation: str | None) -> None:
        now = self.objects[key].generation if key in self.objects else 0
        if if_generation is not None and int(if_generation) != now:
            raise RefusedError(412, "PreconditionFailed")

    def _upload(self, upload: str) -> tuple[str, dict[int, Version]]:
        if upload not in self.uploads:
            raise RefusedError(404, "NoSuchUpload")
        return self.uploads[upload]

    def _version(self, body: bytes) -> Version:
        return Version(body, next(self._generations), f'"{hashlib.md5(body).hexdigest()}"')
