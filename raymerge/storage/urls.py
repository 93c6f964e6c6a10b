"""What a source or destination is called: a path, a bucket's prefix, a repository of the Hub.

models/llama, file:///data/llama            a path
s3://bucket/prefix, gs://bucket/prefix      an object store
az://container/prefix                       Azure; the account comes from the environment
abfss://container@account.dfs.core.windows.net/prefix
hf://org/name@revision, org/name            the Hub; bare only for a source, where no such path is
hdfs://host:port/path, viewfs://...         Hadoop
memory://name/prefix                        this process
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.parse import unquote

from raymerge.errors import StorageError


class Scheme(StrEnum):
    """Before the `://` of a location, in the spelling that raymerge prints."""

    FILE = "file"
    S3 = "s3"
    GS = "gs"
    AZ = "az"
    ABFS = "abfs"
    ABFSS = "abfss"
    MEMORY = "memory"
    HUB = "hf"
    HDFS = "hdfs"
    VIEWFS = "viewfs"


OBJECT_SCHEMES = frozenset(
    (Scheme.S3, Scheme.GS, Scheme.AZ, Scheme.ABFS, Scheme.ABFSS, Scheme.MEMORY)
)
"""Read and written through obstore."""

_SCHEMES = frozenset(scheme.value for scheme in Scheme)
_ALSO_CALLED = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "adl": "abfss"}
_KNOWN = "a path, file://, s3://, gs://, az://, abfss://, hf://, hdfs:// or memory://"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_CUT = re.compile(r"([a-z0-9]+):/[^/]")
# What the Hub allows: letters, digits, `-`, `_` and `.`, of which `-` and `.` stand within.
_HUB_PART = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"({_HUB_PART}/{_HUB_PART})(?:@(\S+))?", re.ASCII)
_HUB_OTHER = ("datasets", "spaces", "models", "kernels")


@dataclass(frozen=True, slots=True)
class Location:
    """A place that checkpoints are read from or written to. Holds no secret, so it may be shown."""

    scheme: Scheme
    root: str
    """Bucket, container (with `@account...` where named), `org/name`, host; empty for a path."""
    path: str
    """Below the root, without slashes at its ends; the whole path of a file."""
    revision: str | None = None
    """Of a repository, as it was given."""

    def __str__(self) -> str:
        if self.scheme is Scheme.FILE:
            return self.path
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}://{self.root}{revision}" + (f"/{self.path}" if self.path else "")

    @property
    def label(self) -> str:
        """The last component: what a source is called where its recipe does not say."""
        return PurePosixPath(self.path).name or PurePosixPath(self.root).name

    @property
    def is_objects(self) -> bool:
        """Whether it lies in an object store."""
        return self.scheme in OBJECT_SCHEMES


def source(text: str, *, exists: Callable[[str], bool] = os.path.exists) -> Location:
    """The location of a source. `org/name` is a repository of the Hub where no such path exists.

    Where a folder `org` is here and has no `name`, the path was meant, and is missing.

    Raises:
        StorageError: The text is no location that raymerge reads; it says what to write instead.

    >>> str(source("org/name@main", exists=lambda path: False))
    'hf://org/name@main'
    """
    if not _URL.fullmatch(text) and not exists(text):
        repository = _HUB_ID.fullmatch(text)
        if repository and not exists(text.partition("/")[0]):
            return Location(Scheme.HUB, repository[1], "", repository[2])
    return destination(text)


def destination(text: str) -> Location:
    """The location of a destination: anything without a scheme is a path.

    Raises:
        StorageError: The text is no location that raymerge writes; it says what to write instead.
    """
    url = _URL.fullmatch(text)
    if url is None:
        return _path(text)
    scheme, rest = url[1].lower(), url[2]
    _refuse_user(scheme, rest)
    if scheme not in _SCHEMES:
        _refuse_scheme(text, scheme)
    if scheme == Scheme.FILE:
        return _file(text, rest)
    return _hub(text, rest) if scheme == Scheme.HUB else _remote(text, Scheme(scheme), rest)


def whole(text: str) -> str:
    """The same source or destination as every process names it, whatever folder it is in."""
    where = source(text)
    return str(Path(where.path).absolute()) if where.scheme is Scheme.FILE else text


def join(location: Location, name: str) -> Location:
    """The place `name` below a location, which may have slashes between its parts.

    >>> str(join(destination("s3://bucket/out"), "a/b.json"))
    's3://bucket/out/a/b.json'
    """
    assert location.scheme is not Scheme.HUB, "a repository has no folders of its own"
    assert name.strip("/"), name
    path = f"{location.path.rstrip('/')}/{name.strip('/')}"
    return replace(location, path=path if location.scheme is Scheme.FILE else path.lstrip("/"))


def _path(text: str) -> Location:
    if not text:
        raise StorageError("The empty text is no location; give " + _KNOWN)
    if (url := _CUT.match(text)) and url[1] in _SCHEMES:
        raise StorageError(
            f"{text} looks like a URL that lost a slash, as it does in a pathlib.Path; give it as "
            f"text, {url[1]}://..., or write ./{text} for a folder of that name"
        )
    return Location(Scheme.FILE, "", text)


def _file(text: str, rest: str) -> Location:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise StorageError(
            f"{text} names the host {host or '(none)'}; a file of this machine has three slashes: "
            f"file:///{rest}"
        )
    return Location(Scheme.FILE, "", "/" + unquote(path))


def _hub(text: str, rest: str) -> Location:
    if rest.startswith("buckets/"):
        raise StorageError(
            f"{text} is a bucket of the Hub, and raymerge reads and writes its repositories: give "
            "hf://org/name, or copy the bucket to a path first"
        )
    repository = _HUB_ID.fullmatch(rest.rstrip("/"))
    if repository is None or rest.partition("/")[0] in _HUB_OTHER:
        raise StorageError(
            f"{text} is no model repository of the Hub; write hf://org/name or "
            "hf://org/name@revision, the revision being a branch, a tag or a commit"
        )
    return Location(Scheme.HUB, repository[1], "", repository[2])


def _remote(text: str, scheme: Scheme, rest: str) -> Location:
    root, _, path = rest.partition("/")
    _refuse_query(scheme, rest)
    path = path.strip("/")
    named = root or scheme in {Scheme.HDFS, Scheme.VIEWFS}
    if not named:
        raise StorageError(
            f"{text} names no {_root_is(scheme)}; write {scheme}://{_root_is(scheme)}/path"
        )
    if path and not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise StorageError(f"{text} has an empty, `.` or `..` part; write the path without it")
    return Location(scheme, root, path)


_NAMES_MORE = frozenset((Scheme.AZ, Scheme.ABFS, Scheme.ABFSS, Scheme.HDFS, Scheme.VIEWFS))
"""Before an `@` these name a container or a user."""


def _refuse_user(scheme: str, rest: str) -> None:
    """Refuse what would put a key on the screen; the message must not either."""
    user = rest.partition("/")[0].rpartition("@")[0]
    if ":" in user or (user and scheme not in _NAMES_MORE):
        raise StorageError(
            f"A {scheme}:// location may not name a user or a key: what is in it is shown and "
            "stored. Give credentials by the environment"
        )


def _refuse_query(scheme: Scheme, rest: str) -> None:
    """Refuse a signature, likewise."""
    if "?" in rest and scheme in OBJECT_SCHEMES:
        raise StorageError(
            f"{scheme}://{rest.partition('?')[0]}?... may not have a query or a signature: what is "
            "in a location is shown and stored. Give credentials by the environment"
        )


def _root_is(scheme: Scheme) -> str:
    if scheme in {Scheme.S3, Scheme.GS}:
        return "bucket"
    return "name" if scheme is Scheme.MEMORY else "container"


def _refuse_scheme(text: str, scheme: str) -> NoReturn:
    known = _ALSO_CALLED.get(scheme)
    # Of an unknown scheme nothing else is shown: an https:// URL is often a signed one.
    if known:
        raise StorageError(f"{scheme}:// is written {known}:// here")
    raise StorageError(f"{text.partition('?')[0]} cannot be read or written; give {_KNOWN}")
