"""A repository of the Hub as a destination: shards go up as they close, one commit shows them all.

    open      the repository and branch are there; the commit that the result will follow
    add       a shard's content goes to the Hub's storage, where nobody sees it; any process
    missing   which of those the Hub does not have any more, before a resumed run trusts them
    commit    all shards, and the small files with the index, at once or not at all

A commit names the one it follows. Did another come in between, it is refused and nothing is seen.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    errors,
    get_session,
)
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

from raymerge.checkpoint.folder import Pin
from raymerge.errors import ConflictError, StorageError
from raymerge.storage.hub import HubFolder, list_commit
from raymerge.storage.hub_errors import in_words
from raymerge.storage.hub_names import HubName, parse_hub_name
from raymerge.storage.hub_quiet import quiet_library
from raymerge.storage.hub_retry import (
    CONNECT_S,
    OPENING_S,
    READING_S,
    STALL_S,
    Patience,
    Retries,
    patiently,
)

# A commit of many files is answered when it is done.
_ANSWER_S = 180.0
_BATCH = 200


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A large file whose content the Hub has, and that no commit names yet."""

    name: str
    size_bytes: int
    sha256: str


class HubDestination:
    """A branch that a result is to be committed to. Holds no secret and survives `pickle`.

    Args:
        location: `hf://org/name` or `hf://org/name@branch`.

    Raises:
        StorageError: It is no such location.
    """

    def __init__(self, location: str) -> None:
        name = parse_hub_name(location)
        if name is None or name.is_pinned:
            raise StorageError(
                f"{location} is no place on the Hub to write to; allowed: hf://org/name or "
                "hf://org/name@branch"
            )
        self._name: HubName = name
        self.was_made = False
        """Whether `open` has made the branch."""

    @property
    def location(self) -> str:
        """`hf://org/name@branch`."""
        return self._name.location

    def open(self, *, private: bool) -> HubFolder:
        """The branch as it is now, made if it is absent. Its commit is the parent to commit to.

        Args:
            private: Whether a repository that is made here is seen by its owners only.

        Raises:
            StorageError: It cannot be had or made.
        """
        self._begin()
        with in_words(self._name, StorageError):
            commit, pins = self._list_or_make(private=private)
        return HubFolder(commit.location, cache=False, pins=pins)

    def add(self, name: str, content: Path | bytes, *, sha256: str | None = None) -> UploadedFile:
        """Upload one large file; its content is not looked at again afterwards.

        Args:
            name: What it will be called once it is committed.
            content: The file, or what is in it; not empty.
            sha256: Of the content, if it is known; else the file is read once more for it.

        Raises:
            StorageError: The Hub does not take it.
        """
        self._begin()
        with in_words(self._name, StorageError, file=name):
            addition = CommitOperationAdd(name, content)
            assert addition.upload_info.size > 0, name
            if sha256 is not None:
                addition.upload_info.sha256 = bytes.fromhex(sha256)
            addition._upload_mode = "lfs"  # noqa: SLF001 - saves asking; shards are large files
            HfApi(library_name="raymerge").preupload_lfs_files(
                self._name.repo, [addition], revision=self._name.revision
            )
        upload = addition.upload_info
        return UploadedFile(name, upload.size, upload.sha256.hex())

    def missing(self, records: Sequence[UploadedFile]) -> tuple[UploadedFile, ...]:
        """Those whose content the Hub would want again; nothing is uploaded.

        Raises:
            StorageError: The Hub does not say.
        """
        self._begin()
        wanted: set[str] = set()
        for start in range(0, len(records), _BATCH):
            uploads = [_upload_info(record) for record in records[start : start + _BATCH]]
            with in_words(self._name, StorageError):
                answers, refusals, _ = post_lfs_batch_info(
                    uploads, None, "model", self._name.repo, revision=self._name.revision
                )
            # An answer with actions says how to upload; what the Hub has needs none.
            wanted |= {each["oid"] for each in answers if each.get("actions")}
            wanted |= {each["oid"] for each in refusals}
        return tuple(record for record in records if record.sha256 in wanted)

    def commit(
        self,
        records: Sequence[UploadedFile],
        small_files: Mapping[str, bytes],
        *,
        deletes: Iterable[str] = (),
        message: str,
        parent: str,
    ) -> str:
        """Publish everything as the one commit after `parent`; returns that commit.

        When the answer is lost on the way, what the branch is then says whether it happened. So
        the same call may be made again, by this process or another.

        Args:
            records: The large files, as `add` returned them.
            small_files: Contents by name, the index among them.
            deletes: Names of files that `parent` has and the result has not.
            message: First line of the commit.
            parent: Commit of the folder that `open` returned.

        Raises:
            ConflictError: The branch is not at `parent` any more. Nothing was published.
            StorageError: The Hub does not take it. Nothing was published.
        """
        self._begin()
        gone = frozenset(deletes)
        patience = Patience(READING_S, Retries())
        with in_words(self._name, StorageError):
            while True:
                try:
                    return self._send(records, small_files, gone, message, parent)
                except httpx2.HTTPError as error:
                    if done := self._happened(records, small_files, gone, parent):
                        return done
                    patience.wait(error)

    def _send(
        self,
        records: Sequence[UploadedFile],
        small_files: Mapping[str, bytes],
        deletes: frozenset[str],
        message: str,
        parent: str,
    ) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(_as_uploaded(record) for record in records),
            *(CommitOperationAdd(name, content) for name, content in small_files.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in sorted(deletes)),
        ]
        with warnings.catch_warnings():
            # The ledger is data, and belongs beside its model.
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
            done = HfApi(library_name="raymerge").create_commit(
                self._name.repo,
                operations,
                commit_message=message,
                revision=self._name.revision,
                parent_commit=parent,
            )
        return done.oid

    def _happened(
        self,
        records: Sequence[UploadedFile],
        small_files: Mapping[str, bytes],
        deletes: frozenset[str],
        parent: str,
    ) -> str | None:
        """The commit that has all this although its answer did not come; None if it is open."""
        head, pins = self._list()
        if head.revision == parent:
            return None
        whole = all(record.sha256 == _tag(pins, record.name) for record in records) and all(
            _tag(pins, name) in _hashes(content) for name, content in small_files.items()
        )
        if whole and not deletes & pins.keys():
            return head.revision
        raise ConflictError(
            f"{self.location} is at commit {head.revision}, and this merge began when it was at "
            f"{parent}: somebody else has written to it. Nothing was published; run again with "
            "--overwrite to replace what is there, or give another branch.",
            file=self.location,
        )

    def _list_or_make(self, *, private: bool) -> tuple[HubName, Mapping[str, Pin]]:
        api = HfApi(library_name="raymerge")
        try:
            return self._list()
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            api.create_repo(self._name.repo, private=private, exist_ok=True)
        except errors.RevisionNotFoundError:
            pass
        self.was_made = True
        if self._name.revision != constants.DEFAULT_REVISION:
            api.create_branch(self._name.repo, branch=self._name.revision, exist_ok=True)
        return self._list()

    def _list(self) -> tuple[HubName, Mapping[str, Pin]]:
        return patiently(lambda: list_commit(self._name), Patience(OPENING_S, Retries()))

    def _begin(self) -> None:
        """Before anything is asked: there may be a network, and it may fall silent."""
        if constants.is_offline_mode():
            why = "HF_HUB_OFFLINE forbids to write to the Hub; unset it"
            raise StorageError(f"{self.location}: {why}", file=self.location)
        quiet_library()
        # The library waits for ever. The session is its own, and a new one after some errors.
        session = get_session()
        if session.timeout == httpx2.Timeout(None):
            session.timeout = httpx2.Timeout(
                connect=CONNECT_S, read=_ANSWER_S, write=STALL_S, pool=None
            )


def _as_uploaded(record: UploadedFile) -> CommitOperationAdd:
    """The operation as `preupload_lfs_files` left it, in whatever process that was."""
    addition = CommitOperationAdd(record.name, b"")
    addition.upload_info = _upload_info(record)
    # What the library sets itself; it has no public way to take an upload up again.
    addition._upload_mode = "lfs"  # noqa: SLF001
    addition._is_uploaded = True  # noqa: SLF001
    return addition


def _upload_info(record: UploadedFile) -> UploadInfo:
    # The sample is for the question whether it is a large file, which is not asked.
    return UploadInfo(record.size_bytes, b"", sha256=bytes.fromhex(record.sha256))


def _tag(pins: Mapping[str, Pin], name: str) -> str | None:
    pin = pins.get(name)
    return pin.tag if pin else None


def _hashes(content: bytes) -> tuple[str, str]:
    """What the Hub may know a file by: git's hash, or its sha256 where it took it for large."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return git.hexdigest(), hashlib.sha256(content).hexdigest()
