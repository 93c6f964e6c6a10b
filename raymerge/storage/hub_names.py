"""Names of Hub repositories as people write them, read without the Hub's library."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from raymerge.errors import StorageError
from raymerge.storage.urls import Scheme, source

SCHEME = "hf://"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEFAULT = "main"


@dataclass(frozen=True, slots=True)
class HubName:
    """A model repository, and a branch, tag or commit of it."""

    repo: str
    """`org/name`."""
    revision: str = _DEFAULT

    @property
    def location(self) -> str:
        """Its URL, as messages and plans have it."""
        return f"{SCHEME}{self.repo}@{self.revision}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> HubName:
        """The same repository at another revision."""
        return replace(self, revision=revision)


def parse_hub_name(text: str) -> HubName | None:
    """Read `hf://org/name`, `org/name`, either with `@revision`; None for anything else.

    All behind the `@` is the revision, so that a branch may have slashes; what the Hub's own URLs
    may have there beside, a path in the repository, is not a checkpoint.

    >>> parse_hub_name("hf://org/name@v1.0")
    HubName(repo='org/name', revision='v1.0')
    >>> parse_hub_name("org/name").location
    'hf://org/name@main'
    >>> parse_hub_name("hf://datasets/org/name"), parse_hub_name("s3://bucket/name")
    (None, None)
    """
    try:
        where = source(text, exists=lambda _: False)
    except StorageError:
        return None
    if where.scheme is not Scheme.HUB:
        return None
    return HubName(where.root, where.revision or _DEFAULT)
