"""Copy checkpoints to places and read them back, whatever their URL, by obstore alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import obstore

from raymerge.storage.clients import Use, open_client
from raymerge.storage.urls import destination
from tests.servers.hub_state import Hub


def store(folder: Path, url: str) -> None:
    """Put the files of a folder below a URL."""
    where = destination(url)
    client = open_client(where, {}, Use.SEND)
    for path in sorted(folder.iterdir()):
        obstore.put(client, f"{where.path}/{path.name}", path.read_bytes(), use_multipart=False)


def names(url: str) -> list[str]:
    """Everything below a URL, in order."""
    where = destination(url)
    listed = obstore.list(open_client(where, {}, Use.ASK), where.path).collect()
    start = len(where.path) + 1
    return sorted(meta["path"][start:] for meta in listed)


def stored(url: str) -> dict[str, bytes]:
    """The content of everything below a URL, by name."""
    where = destination(url)
    client = open_client(where, {}, Use.ASK)
    return {name: bytes(obstore.get(client, f"{where.path}/{name}").bytes()) for name in names(url)}


def put(url: str, content: bytes) -> None:
    """Write one object."""
    where = destination(url)
    obstore.put(open_client(where, {}, Use.SEND), where.path, content, use_multipart=False)


def remove(url: str) -> None:
    """Remove everything below a URL."""
    where = destination(url)
    client = open_client(where, {}, Use.ASK)
    obstore.delete(client, [f"{where.path}/{name}" for name in names(url)])


def on_hub(folder: Path, hub: Hub, repo: str) -> str:
    """Commit the files of a folder to a repository; returns the commit."""
    return hub.add(repo, {path.name: path.read_bytes() for path in folder.iterdir()})


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 of every shard among some files."""
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in sorted(files.items())
        if name.endswith(".safetensors")
    }
