"""The Hub's cache on this node (HF_HOME), which all workers and all other programs share.

Files in it are the library's business. Beside them stands, per commit, what the Hub said of its
files, so that a commit that was opened once can be opened without the Hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from raymerge.checkpoint.folder import Pin
from raymerge.checkpoint.index import INDEX_NAME, parse_index
from raymerge.errors import SourceError, StorageError
from raymerge.storage.hub_errors import in_words
from raymerge.storage.hub_names import HubName
from raymerge.storage.hub_retry import CONNECT_S
from raymerge.storage.mounts import free_bytes
from raymerge.units import format_bytes


def find(name: HubName, file: str, pin: Pin) -> Path | None:
    """Where a file of a commit lies in the cache, if it does.

    Raises:
        SourceError: What lies there is not what `pin` names.
    """
    with in_words(name, SourceError, file=file):
        found = try_to_load_from_cache(name.repo, file, revision=name.revision)
        return _checked(Path(found), name, file, pin) if isinstance(found, str) else None


def fetch(name: HubName, file: str, pin: Pin) -> Path:
    """Have a file of a commit in the cache, and say where.

    Of all who ask on a node one downloads, and the others wait for it.

    Raises:
        SourceError: It cannot be had, or is not what `pin` names.
        StorageError: There is not enough space for it.
    """
    check_room(pin.size_bytes)
    with in_words(name, SourceError, file=file):
        path = hf_hub_download(
            name.repo,
            file,
            revision=name.revision,
            library_name="raymerge",
            etag_timeout=CONNECT_S,
        )
        return _checked(Path(path), name, file, pin)


def check_room(needed_bytes: int) -> None:
    """Raise unless the cache has space for so much more.

    Raises:
        StorageError: It has not; how much is needed and free is in the message.
    """
    free = free_bytes(constants.HF_HUB_CACHE)
    if needed_bytes > free:
        raise StorageError(
            f"the Hub's cache {constants.HF_HUB_CACHE} has {format_bytes(free)} free, and "
            f"{format_bytes(needed_bytes)} are to be fetched into it. Make space, set HF_HOME to a "
            "larger disk, or give --no-cache to read from the Hub without a copy here."
        )


def remember(asked: HubName, commit: HubName, pins: Mapping[str, Pin]) -> None:
    """Keep what a revision was resolved to. A cache that cannot be written to is left as it is."""
    place = _place(commit)
    listing = {file: [pin.size_bytes, pin.tag] for file, pin in pins.items()}
    with suppress(OSError):
        _write(place / "raymerge" / f"{commit.revision}.json", json.dumps(listing))
        if not asked.is_pinned:
            _write(place / "refs" / asked.revision, commit.revision)


def recall_commit(asked: HubName) -> HubName:
    """The commit that a branch or tag was when it was last asked for.

    Raises:
        SourceError: It was not yet.
    """
    if asked.is_pinned:
        return asked
    try:
        return asked.at((_place(asked) / "refs" / asked.revision).read_text().strip())
    except OSError:
        raise _absent(asked, f"which commit {asked.revision} is") from None


def recall_pins(commit: HubName) -> Mapping[str, Pin] | None:
    """Every file of a commit, as the Hub once said; None if it was not asked."""
    try:
        listing = json.loads((_place(commit) / "raymerge" / f"{commit.revision}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return {file: Pin(size_bytes, tag) for file, (size_bytes, tag) in listing.items()}


def cached_pins(commit: HubName) -> Mapping[str, Pin]:
    """The files of a commit that other programs have fetched, from the links of the cache.

    Raises:
        SourceError: There are none, or not all shards that the index names.
    """
    snapshot = _place(commit) / "snapshots" / commit.revision
    try:
        links = {child.name: child for child in snapshot.iterdir() if child.is_symlink()}
    except OSError:
        raise _absent(commit, "any file of it") from None
    # A link leads to a file that has the tag for its name.
    pins = {
        file: Pin(link.stat().st_size, link.readlink().name)
        for file, link in links.items()
        if link.is_file()
    }
    if not pins:
        raise _absent(commit, "any file of it")
    if INDEX_NAME in pins:
        raw = links[INDEX_NAME].read_bytes()
        shards = parse_index(raw, source=commit.location, file=INDEX_NAME).values()
        if missing := sorted(set(shards) - pins.keys()):
            raise _absent(commit, f"{missing[0]} and {len(missing) - 1} other shards")
    return pins


def _checked(path: Path, name: HubName, file: str, pin: Pin) -> Path:
    size_bytes = path.stat().st_size
    tag = path.readlink().name if path.is_symlink() else pin.tag
    if (size_bytes, tag) != (pin.size_bytes, pin.tag):
        raise SourceError(
            f"{name.location}/{file} is {path} in the cache, which has {size_bytes} bytes ({tag}); "
            f"expected are {pin.size_bytes} ({pin.tag}). Remove it and run again.",
            source=name.location,
            file=file,
        )
    return path


def _absent(name: HubName, what: str) -> SourceError:
    return SourceError(
        f"{name.location}: the cache {constants.HF_HUB_CACHE} does not have {what}, and "
        "HF_HUB_OFFLINE forbids to ask the Hub. Unset it, or run `hf download "
        f"{name.repo} --revision {name.revision}` where there is a network.",
        source=name.location,
    )


def _place(name: HubName) -> Path:
    folder = repo_folder_name(repo_id=name.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE).expanduser() / folder


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: other processes read it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")
    unfinished.write_text(text)
    os.replace(unfinished, path)  # noqa: PTH105


def state_folder(location: str) -> Path:
    """Where this machine keeps what it knows of a merge into a branch, until it is committed."""
    return Path(constants.HF_HOME, "raymerge", "merges", location.removeprefix("hf://"))
