"""A checkpoint on the Hugging Face Hub, pinned to the commit that its revision is now.

One request to the Hub's API says which commit that is, and of every file its size and the hash of
its content. All that follows is reads of that commit, which cannot change: workers, who are given
the commit and the hashes, ask nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError
from raymerge.storage import hub_cache
from raymerge.storage.hub_errors import in_words
from raymerge.storage.hub_names import HubName, parse_hub_name
from raymerge.storage.hub_quiet import quiet_library
from raymerge.storage.hub_ranges import HubRanges
from raymerge.storage.hub_retry import (
    CONNECT_S,
    OPENING_S,
    READING_S,
    STALL_S,
    Patience,
    Retries,
    patiently,
)
from raymerge.storage.posix import PosixFolder
from raymerge.storage.store import RemoteFolder

HEAD_BYTES = 100_000
"""Read at once from a file's start: nearly all headers fit, and so take one read, not two."""
# More than headers that are read at once, so that none is dropped between its two reads.
_HEADS_KEPT = 32


class HubFolder(RemoteFolder):
    """The files at the top of a repository, at one commit.

    Args:
        location: `hf://org/name`, `org/name`, either with `@revision`, main by default.
        cache: Whether whole files go through the cache of this node.
        pins: Every file, if it is known; the revision is a full commit then.

    Raises:
        SourceError: The repository or revision is not there, or access is refused.
    """

    def __init__(
        self, location: str, *, cache: bool = True, pins: Mapping[str, Pin] | None = None
    ) -> None:
        name = parse_hub_name(location)
        if name is None:
            raise SourceError(
                f"{location} is no model on the Hub; allowed: hf://org/name or "
                "hf://org/name@revision, with a branch, tag or full commit for a revision",
                source=location,
            )
        quiet_library()
        self._cache = cache
        self._retries = Retries()
        self._pins = pins
        self._reached = False
        self._lock = Lock()
        self._name = name if name.is_pinned else self._resolve(name)
        self._ranges = HubRanges(self._name, self._retries)
        self._heads: OrderedDict[str, bytes] = OrderedDict()

    def __reduce__(self) -> tuple[Callable[..., HubFolder], tuple[object, ...]]:
        return _rebuild, (self.location, self._cache, self._pins)

    @property
    def name(self) -> HubName:
        """The repository, at its commit."""
        return self._name

    @property
    def location(self) -> str:
        """`hf://org/name@commit`."""
        return self._name.location

    @property
    def retries(self) -> int:
        """Requests that were made again so far; those of the cache's downloads are not seen."""
        return self._retries.count

    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file at the top of the repository, by name."""
        return {file: pin.size_bytes for file, pin in self._known_pins().items()}

    def pin(self, name: str) -> Pin:
        """Size and content hash of a file: its sha256, or git's hash where it is a small one."""
        pin = self._known_pins().get(name)
        if pin is None:
            why = f"{self.location} has no file {name}"
            raise SourceError(why, source=self.location, file=name)
        return pin

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes `[start, stop)` of a file, from the cache if they are there."""
        pin = self.pin(name)
        if stop > pin.size_bytes:
            why = f"bytes [{start}, {stop}) were asked for, and it has {pin.size_bytes}"
            raise SourceError(f"{self.location}/{name}: {why}", source=self.location, file=name)
        path = hub_cache.find(self._name, name, pin)
        # A file that is read whole, such as config.json, is wanted offline too.
        if path is None and self._cache and (start, stop) == (0, pin.size_bytes):
            path = self.cached_path(name, pin)
        if path is not None:
            return PosixFolder(path.parent).read(name, start, stop)
        if stop <= HEAD_BYTES:
            return self._head(name, pin)[start:stop]
        return bytes(self._range(name, start, stop, pin, OPENING_S))

    def fetch(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:
        """Exactly the bytes `[start, stop)` of the file that `pin` names, over the network."""
        return memoryview(self._range(name, start, stop, pin, READING_S))

    @property
    def copied(self) -> Callable[[str, Pin], Path] | None:
        """`cached_path`, where whole files go through the cache."""
        return self.cached_path if self._cache else None

    def cached_path(self, name: str, pin: Pin) -> Path:
        """Where a file lies in this node's cache, to be read as a local file; fetched if need be.

        Raises:
            SourceError: It cannot be had, or is not what `pin` names.
            StorageError: There is not enough space for it.
        """
        if path := hub_cache.find(self._name, name, pin):
            return path
        self._reach(name)
        return hub_cache.fetch(self._name, name, pin)

    def uncached_bytes(self, names: Iterable[str]) -> int:
        """What reading these files through the cache would add to it."""
        pins = {name: self.pin(name) for name in names}
        return sum(
            pin.size_bytes
            for name, pin in pins.items()
            if hub_cache.find(self._name, name, pin) is None
        )

    def _reach(self, file: str) -> None:
        """Find out whether the Hub answers: the library's download would wait for minutes."""
        if not self._reached:
            url = hf_hub_url(self._name.repo, file, revision=self._name.revision)
            with in_words(self._name, SourceError, file=file):
                patiently(
                    lambda: get_hf_file_metadata(url, timeout=CONNECT_S, library_name="raymerge"),
                    Patience(OPENING_S, self._retries),
                )
            self._reached = True

    def _range(self, name: str, start: int, stop: int, pin: Pin, patience_s: float) -> bytearray:
        with in_words(self._name, SourceError, file=name):
            return self._ranges.read(name, start, stop, pin, patience_s=patience_s)

    def _head(self, name: str, pin: Pin) -> bytes:
        with self._lock:
            head = self._heads.get(name)
        if head is None:
            head = bytes(self._range(name, 0, min(HEAD_BYTES, pin.size_bytes), pin, OPENING_S))
            with self._lock:
                self._heads[name] = head
                while len(self._heads) > _HEADS_KEPT:
                    self._heads.popitem(last=False)
        return head

    def _known_pins(self) -> Mapping[str, Pin]:
        if self._pins is None:
            self._pins = hub_cache.recall_pins(self._name)
        if self._pins is None:
            self._resolve(self._name)
        assert self._pins is not None
        return self._pins

    def _resolve(self, asked: HubName) -> HubName:
        """The commit of a revision. What files it has is known from then on."""
        if constants.is_offline_mode():
            commit = hub_cache.recall_commit(asked)
            self._pins = hub_cache.recall_pins(commit) or hub_cache.cached_pins(commit)
            return commit
        with in_words(asked, SourceError):
            commit, self._pins = patiently(
                lambda: list_commit(asked), Patience(OPENING_S, self._retries)
            )
        self._reached = True
        if self._cache:
            hub_cache.remember(asked, commit, self._pins)
        return commit


def list_commit(asked: HubName) -> tuple[HubName, Mapping[str, Pin]]:
    """Ask the Hub which commit a revision is, and what files are at its top. One request."""
    api = HfApi(library_name="raymerge")
    model = api.model_info(
        asked.repo, revision=asked.revision, files_metadata=True, timeout=STALL_S
    )
    if model.sha is None:
        why = "the answer names no commit; HF_ENDPOINT is not a Hub"
        raise SourceError(f"{asked.location}: {why}", source=asked.location)
    pins = {
        file.rfilename: Pin(file.size, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in model.siblings or ()
        if "/" not in file.rfilename and file.size is not None
    }
    return asked.at(model.sha), pins


def _rebuild(location: str, cache: bool, pins: Mapping[str, Pin] | None) -> HubFolder:  # noqa: FBT001
    return HubFolder(location, cache=cache, pins=pins)
