"""One merge from bucket to bucket on a bad day, and what became of it. Seeded: a day comes again.

    faults        requests are refused, reset, cut short, stalled, delayed, at a random rate
    expiry        from a random request on the token has expired
    driver kill   the driver, a process of its own, dies at a random request
    worker kill   on Ray: a worker dies at a random request

A merge ends whole and equal, or in an error without an index, and then a rerun in good weather ends
it. Anything else is wrong.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import raymerge
from raymerge.errors import RaymergeError
from tests import sites
from tests.conftest import finish, spawn
from tests.servers.faults import AtRandom, Choice, Exchange, Fault, Kind, never
from tests.servers.proxy import Proxy
from tests.servers.seaweed import S3

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 9_000_000
"""Two parts of an upload."""
FAULTS = (
    Fault(Kind.REFUSE),
    Fault(Kind.LOSE),
    Fault(Kind.RESET),
    Fault(Kind.TRUNCATE),
    Fault(Kind.STALL, seconds=30),
    Fault(Kind.DELAY, seconds=0.2),
)
STORAGE = {"read_timeout": "1s", "timeout": "10s"}
"""Stalls are given up soon: a trial has not the patience of a merge of hours."""
EVENTS = {"faults": 0.5, "expiry": 0.15, "driver kill": 0.2, "worker kill": 0.15}
MOST_REQUESTS = 80
"""A merge makes some 70; one that is to be killed at a later one is not."""
WORKER = b"ray::RemoteWorker"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial."""

    number: int
    event: str
    first: str
    """`whole`, `killed`, or the kind of error."""
    faults: int
    retries: int
    resumed: int
    """Units that the rerun found whole."""
    wrong: str = ""
    """What must not be, if anything is."""


class Soak:
    """Runs trials of one recipe whose sources lie in a bucket.

    Args:
        recipe: Reads from the bucket.
        s3: The bucket, without the proxy.
        proxy: What the environment leads to.
        expected: Hashes of the shards.
    """

    def __init__(self, recipe: Path, s3: S3, proxy: Proxy, expected: Mapping[str, str]) -> None:
        self._recipe = recipe
        self._s3 = s3
        self._proxy = proxy
        self._expected = expected

    def run(self, number: int) -> Outcome:
        """One trial; everything about it follows from its number."""
        draw = random.Random(f"soak {number}")
        event = draw.choices(list(EVENTS), list(EVENTS.values()))[0]
        out = self._s3.url(f"out-{number}")
        faults = AtRandom(number, draw.uniform(0.01, 0.25), FAULTS)
        fatal = draw.randrange(1, MOST_REQUESTS)
        self._proxy.log.clear()
        first, retries = {
            "faults": self._here,
            "expiry": self._expiring,
            "driver kill": self._in_a_process,
            "worker kill": self._on_ray,
        }[event](out, faults, fatal)
        met = self._proxy.faults.total()
        self._proxy.choose = never
        wrong, resumed = self._judge(out, first)
        sites.remove(out)
        return Outcome(number, event, first, met, retries, resumed, wrong)

    def _here(self, out: str, faults: Choice, _: int) -> tuple[str, int]:
        self._proxy.choose = faults
        return self._merge(out, engine="local")

    def _expiring(self, out: str, faults: Choice, fatal: int) -> tuple[str, int]:
        numbers = count(1)

        def choose(exchange: Exchange) -> Fault | None:
            return faults(exchange) if next(numbers) < fatal else Fault(Kind.EXPIRE)

        self._proxy.choose = choose
        return self._merge(out, engine="local")

    def _in_a_process(self, out: str, faults: Choice, fatal: int) -> tuple[str, int]:
        options = [
            word for pair in STORAGE.items() for word in ("--storage-option", "=".join(pair))
        ]
        process = spawn(
            "merge", self._recipe, out, "--engine", "local", "--device", "cpu", "--workers", 1,
            "--shard-size", SHARD_BYTES, "--json", *options,
        )  # fmt: skip
        self._proxy.choose = _at(fatal, faults, process.kill)
        done = finish(process, 300)
        if done.rc == -signal.SIGKILL:
            return "killed", 0
        return ("whole", done.json["retries"]) if done.rc == 0 else (done.error["type"], 0)

    def _on_ray(self, out: str, faults: Choice, fatal: int) -> tuple[str, int]:
        self._proxy.choose = _at(fatal, faults, _kill_a_worker)
        return self._merge(out, engine="ray")

    def _merge(self, out: str, **options: Any) -> tuple[str, int]:
        try:
            result = raymerge.merge(
                self._recipe,
                out,
                device="cpu",
                workers=2,
                memory_bytes=2**30,
                shard_bytes=SHARD_BYTES,
                storage_options=STORAGE,
                **options,
            )
        except RaymergeError as error:
            return type(error).__name__, 0
        return "whole", result.retries

    def _judge(self, out: str, first: str) -> tuple[str, int]:
        """What is wrong, and how many units a rerun took over."""
        found = sites.stored(out)
        if first == "whole":
            return self._unlike(out, found), 0
        # Killed once its index was there, a merge is whole, and only tidying up is left.
        if INDEX in found and (first != "killed" or sites.hashes(found) != self._expected):
            return f"an index beside {first}", 0
        again, _ = self._merge(out, engine="local")
        if again != "whole":
            return f"a rerun ended in {again}", 0
        resumed = sum(name.startswith(".raymerge/") and "/unit-" in name for name in found)
        return self._unlike(out, sites.stored(out)), resumed

    def _unlike(self, out: str, found: Mapping[str, bytes]) -> str:
        if sites.hashes(found) != self._expected or INDEX not in found:
            return f"other bytes: {sorted(found)}"
        left = [name for name in found if name.startswith(".raymerge")]
        uploads = self._s3.uploads().body.decode()
        left += [f"upload {n}" for n in found if f"{out.rpartition('/')[2]}/{n}<" in uploads]
        return f"left behind: {left}" if left else ""


def _at(fatal: int, faults: Choice, act: Callable[[], None]) -> Choice:
    """Some faults, and an act at one request."""
    numbers = count(1)

    def choose(exchange: Exchange) -> Fault | None:
        if next(numbers) == fatal:
            act()
        return faults(exchange)

    return choose


def _kill_a_worker() -> None:
    """Kill one of the Ray workers that this process has."""
    for pid in _descendants(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(WORKER):
                os.kill(pid, signal.SIGKILL)
                return


def _descendants(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "--no-headers", "-o", "pid", "--ppid", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    children = [int(word) for word in found.stdout.split()]
    return [one for child in children for one in (child, *_descendants(child))]


def summary(outcomes: list[Outcome]) -> str:
    """Counts by event and by how the first run ended."""
    counts = Counter((one.event, one.first) for one in outcomes)
    lines = [
        f"{event:12} {first:14} {number:4}" for (event, first), number in sorted(counts.items())
    ]
    met, retries = sum(o.faults for o in outcomes), sum(o.retries for o in outcomes)
    resumed = sum(o.resumed for o in outcomes)
    wrong = sum(bool(o.wrong) for o in outcomes)
    lines.append(f"{len(outcomes)} merges, {wrong} wrong; {met} faults met")
    lines.append(f"{retries} retries told of by whole merges, {resumed} units resumed by reruns")
    return "\n".join(lines)
