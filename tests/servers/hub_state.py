"""What the Hub of the tests is: its repositories, its tokens, its bad days, and what was asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

from tests.servers.hub_repos import Repo, as_file


@dataclass
class Fault:
    """What becomes of a request in place of its answer."""

    status: int = 0
    """It is answered with this; else the answer's body suffers."""
    headers: Mapping[str, str] = field(default_factory=dict)
    why: str = "a fault"
    cut_after: int | None = None
    """Bytes of the body after which the connection is reset..."""
    stall_s: float = 0
    """...first silent for so long."""
    drip_s: float = 0
    """Between every thousand bytes of the body."""


@dataclass
class Hub:
    """The server's state, and what tests do with it."""

    endpoint: str = ""
    cdn: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[str, str] = field(default_factory=dict)
    """`read` or `write`, by token."""
    authorized: Counter[str] = field(default_factory=Counter)
    """Requests that came with a token, by kind."""
    ranges: bool = True
    """Whether a Range is honoured."""
    signature: int = 1
    """Of the CDN's addresses; all given out before expire when it changes."""
    lock: Lock = field(default_factory=Lock)

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        branch: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commit exactly these files to a branch; the repository is made if there is none."""
        made = {name: as_file(name, content) for name, content in files.items()}
        self.blobs |= {file.sha256: file.content for file in made.values() if file.is_lfs}
        return self.repos.setdefault(repo, Repo(private, gated)).commit(made, branch=branch)

    def fault(self, kind: str, fault: Fault, *, times: int = 1) -> None:
        """Let the next requests of a kind come to grief."""
        self.faults[kind] += [fault] * times

    def expire(self) -> None:
        """Make every address of the CDN that was given out invalid."""
        self.signature += 1

    def next_fault(self, kind: str) -> Fault | None:
        with self.lock:
            self.counts[kind] += 1
            return self.faults[kind].pop(0) if self.faults[kind] else None

    def signed(self, oid: str) -> str:
        return f"{self.cdn}/blob/{oid}?Signature=cdn-secret-{self.signature}"
