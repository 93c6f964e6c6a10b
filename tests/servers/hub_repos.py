"""What the Hub of the tests holds: repositories with commits, and the blobs behind them."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class File:
    """A file of a commit: content that git keeps, or a large one that is named by its sha256."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        kept = self.content
        if self.is_lfs:
            kept = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def as_sibling(self, name: str) -> dict[str, Any]:
        sibling = {"rfilename": name, "size": len(self.content), "blobId": self.blob_id}
        if self.is_lfs:
            lfs = {"sha256": self.sha256, "size": len(self.content), "pointerSize": 134}
            return {**sibling, "lfs": lfs}
        return sibling


@dataclass
class Repo:
    """Commits by their hash, and branches that point to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, File], *, branch: str = "main", title: str = "") -> str:
        """Make these the files of a branch; returns the commit."""
        sha = hashlib.sha1(f"{next(_numbers)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.titles.append(title)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch or of its own name."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return {name: file.content for name, file in self.commits[self.branches[branch]].items()}


def as_file(name: str, content: bytes) -> File:
    return File(content, name.endswith(LFS_SUFFIXES))


def apply(
    repo: Repo, branch: str, body: bytes, blobs: Mapping[str, bytes]
) -> tuple[int, dict[str, Any]]:
    """Do what the lines of a commit say, all or nothing: status and answer."""
    lines = [json.loads(line) for line in body.splitlines()]
    head = repo.branches[branch]
    files = dict(repo.commits[head])
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "header":
                if value.get("parentCommit", head) != head:
                    why = "A commit has happened since. Please refresh and try again."
                    return 412, {"error": why}
            case "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            case "lfsFile":
                if value["oid"] not in blobs:
                    return 400, {"error": f"LFS object {value['oid']} does not exist"}
                files[value["path"]] = File(blobs[value["oid"]], is_lfs=True)
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    return 404, {"error": "A file with this name doesn't exist"}
    sha = repo.commit(files, branch=branch, title=lines[0]["value"]["summary"])
    return 200, {"commitOid": sha}
