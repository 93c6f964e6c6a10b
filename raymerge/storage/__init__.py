"""Where bytes lie: local files, object stores, the Hub, and what pyarrow reaches.

    posix, mounts   files, and what their file systems allow
    urls            what a location is
    store           what remote places offer
    objects         s3://, gs://, az://, abfss://, memory://
    hub             hf://org/name@revision
    arrow           hdfs:// and viewfs://, for reading

A room is entered, and its client imported, when a location asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError, StorageError
from raymerge.storage.posix import PosixFolder
from raymerge.storage.store import Access, RemoteFolder
from raymerge.storage.urls import Location, Scheme, destination, source

SourceFolder = PosixFolder | RemoteFolder


def open_folder(
    location: str,
    *,
    label: str,
    revision: str | None = None,
    access: Access | None = None,
    pins: Mapping[str, Pin] | None = None,
) -> SourceFolder:
    """The folder of a source.

    Args:
        location: Path or URL.
        label: What messages call it.
        revision: Of a repository, where the location does not name it.
        access: How storage is reached.
        pins: What a plan has found there; it is not asked for again then.

    Raises:
        SourceError: It is not there, or it is a place that raymerge cannot read from.
    """
    access = access or Access()
    try:
        where = source(location)
        if where.scheme is Scheme.FILE:
            return PosixFolder(where.path)
        if where.scheme is Scheme.HUB:
            from raymerge.storage.hub import HubFolder

            where = replace(where, revision=where.revision or revision)
            try:
                return HubFolder(str(where), cache=access.cache, pins=pins)
            except SourceError as error:
                if "://" not in location:
                    error.message = f"there is no folder {location} here, and on the Hub: {error}"
                raise
        if where.is_objects:
            from raymerge.storage.objects import ObjectFolder

            return ObjectFolder(where, access)
        from raymerge.storage.arrow import ArrowFolder

        return ArrowFolder(where)
    except StorageError as error:
        raise SourceError(f"{label}: {error}", source=label, retryable=error.retryable) from error


def open_local(location: str, *, label: str) -> PosixFolder:
    """The folder of a source on this machine; files of the Hub are copied to its cache first.

    Raises:
        SourceError: It is not there, or it lies where files cannot be had whole.
    """
    folder = open_folder(location, label=label)
    if isinstance(folder, PosixFolder):
        return folder
    if folder.copied is None:
        raise SourceError(
            f"{label}: {location} is read by range, and pickles are read from files only; copy it "
            "to this machine first",
            source=label,
        )
    copies = [folder.copied(name, folder.pin(name)) for name in folder.sizes()]
    if not copies:
        raise SourceError(f"{label}: {location} holds no files", source=label)
    return PosixFolder(copies[0].parent)


def local_folder(out: str) -> Path:
    """The path of a destination that has to lie on this machine.

    Raises:
        StorageError: It lies elsewhere.
    """
    where = destination(out)
    if where.scheme is not Scheme.FILE:
        raise StorageError(f"{out} is not on this machine; give a folder, and copy the result")
    return Path(where.path)


def read_file(location: str, *, access: Access | None = None) -> bytes:
    """A small file, such as a recipe, wherever it lies but on the Hub.

    Raises:
        SourceError: It is not there or cannot be read.
    """
    where = source(location)
    parent, _, name = where.path.rpartition("/")
    if where.scheme is Scheme.FILE:
        parent = parent or ("/" if where.path.startswith("/") else ".")
    folder = open_folder(str(replace(where, path=parent)), label=location, access=access)
    return folder.read(name, 0, folder.pin(name).size_bytes)


def same_place(out: str, location: str) -> bool:
    """Whether a destination is the place of a source, as far as that is known without asking."""
    one, other = destination(out), source(location)
    if one.scheme is Scheme.FILE and other.scheme is Scheme.FILE:
        return _same_folder(Path(one.path), Path(other.path))
    if one.scheme is Scheme.HUB and other.scheme is Scheme.HUB:
        return _branch(one) == _branch(other)
    return _prefix(one) == _prefix(other)


def _branch(repository: Location) -> tuple[str, str]:
    return repository.root, repository.revision or "main"


def _prefix(location: Location) -> tuple[str, str, str]:
    """What is below the same prefix of the same bucket, however it is spelt."""
    scheme, root, path = location.scheme, location.root, location.path
    if scheme in {Scheme.AZ, Scheme.ABFS, Scheme.ABFSS}:
        container, _, server = root.partition("@")
        account = server.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        scheme, root = Scheme.AZ, f"{container}@{account}"
    # One object is a source beside whatever else is there.
    folder = path.rpartition("/")[0] if path.endswith(".safetensors") else path
    return scheme, root, folder


def _same_folder(out: Path, found: Path) -> bool:
    folder = found.parent if found.is_file() else found
    return out.exists() and folder.exists() and out.samefile(folder)


__all__ = [
    "Access",
    "Location",
    "Scheme",
    "SourceFolder",
    "destination",
    "local_folder",
    "open_folder",
    "open_local",
    "read_file",
    "same_place",
    "source",
]
