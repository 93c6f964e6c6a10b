"""Whose token the Hub is asked with, and what a repository lets it do: what `doctor` shows."""

from __future__ import annotations

from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, constants, errors, get_session, get_token

from raymerge.errors import SourceError, StorageError
from raymerge.storage.hub import HubFolder
from raymerge.storage.hub_errors import endpoint, in_words
from raymerge.storage.hub_names import HubName, parse_hub_name
from raymerge.storage.hub_quiet import quiet_library
from raymerge.storage.hub_retry import TIMEOUT, Patience, Retries, patiently
from raymerge.storage.hub_upload import HubDestination, UploadedFile
from raymerge.storage.mounts import free_bytes

_PATIENCE_S = 8.0
TRIAL_NAME = "raymerge-doctor.txt"
"""Of a kind that the Hub keeps among its small files: nothing of it stays when its branch goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who a token is of."""

    name: str
    role: str
    """`read`, `write` or `fineGrained`."""
    namespaces: frozenset[str]
    """Its own and those of its organisations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A model repository, as its page shows it."""

    private: bool
    gated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRoom:
    """The cache of this node."""

    path: str
    free_bytes: int


def hub_address() -> str:
    """Where the Hub is, and whether it is asked at all."""
    return f"{endpoint()} (offline: HF_HUB_OFFLINE)" if is_offline() else endpoint()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    return constants.is_offline_mode()


def cache_room() -> CacheRoom:
    """Where files of the Hub are kept on this node, and the space there is."""
    return CacheRoom(path=constants.HF_HUB_CACHE, free_bytes=free_bytes(constants.HF_HUB_CACHE))


def account(location: str) -> Account | None:
    """Whose token is in use; None without one.

    Raises:
        StorageError: The Hub does not know the token, or does not answer.
    """
    name = _named(location)
    if get_token() is None:
        return None
    _begin()
    with in_words(name, StorageError):
        found = patiently(HfApi(library_name="raymerge").whoami, _patience())
        own = str(found["name"])
        organizations = {str(each["name"]) for each in found.get("orgs", ())}
        role = found.get("auth", {}).get("accessToken", {}).get("role", "unknown")
    return Account(name=own, role=str(role), namespaces=frozenset({own, *organizations}))


def repository(location: str) -> Repository | None:
    """What a repository is; None where there is none, or none that may be seen.

    Raises:
        SourceError: The Hub does not answer.
    """
    name = _named(location)
    _begin()
    with in_words(name, SourceError):
        try:
            found = patiently(
                lambda: HfApi(library_name="raymerge").model_info(name.repo), _patience()
            )
        except errors.GatedRepoError:
            return Repository(private=False, gated=True)
        except errors.RepositoryNotFoundError:
            return None
    return Repository(private=bool(found.private), gated=bool(found.gated))


class Trial:
    """A branch of its own, on which something is written and which is removed again.

    Args:
        location: `hf://org/name` of a repository that is there.
        branch: One that is not.

    Raises:
        StorageError: It cannot be made.
    """

    def __init__(self, location: str, branch: str) -> None:
        self._name = HubName(_named(location).repo, branch)
        self._api = HfApi(library_name="raymerge")
        self._destination = HubDestination(self._name.location)
        _begin()
        with in_words(self._name, StorageError):
            self._api.create_branch(self._name.repo, branch=branch)

    def takes_large_files(self) -> bool:
        """Whether the Hub would take a shard: it is asked where to, and nothing is sent."""
        absent = UploadedFile("model.safetensors", 2**20, sha256="0" * 64)
        return bool(self._destination.missing([absent]))

    def write(self, data: bytes) -> str:
        """Commit a small file to the branch; returns the commit."""
        parent = self._destination.open(private=True).name.revision
        return self._destination.commit(
            [], {TRIAL_NAME: data}, message="Try to write", parent=parent
        )

    def read(self, commit: str) -> bytes:
        """The file as the Hub has it."""
        folder = HubFolder(self._name.at(commit).location, cache=False)
        pin = folder.pin(TRIAL_NAME)
        return bytes(folder.fetch(TRIAL_NAME, 0, pin.size_bytes, pin))

    def remove(self) -> None:
        """Remove the branch."""
        with in_words(self._name, StorageError):
            self._api.delete_branch(self._name.repo, branch=self._name.revision)


def _named(location: str) -> HubName:
    name = parse_hub_name(location)
    assert name is not None, location
    return name


def _patience() -> Patience:
    return Patience(_PATIENCE_S, Retries())


def _begin() -> None:
    quiet_library()
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = TIMEOUT
