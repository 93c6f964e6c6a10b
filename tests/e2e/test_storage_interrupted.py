"""What happens to a merge from bucket to bucket: killed, contested, its sources replaced.

Runs are processes of their own behind a proxy that lets so little through that what is done to them
meets them in the middle.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch

import raymerge
from raymerge.errors import SourceError
from tests import sites
from tests.conftest import Done, Place, finish
from tests.servers.faults import Exchange, Fault, Kind, in_turn, never
from tests.servers.proxy import Proxy
from tests.servers.seaweed import S3

INDEX = "model.safetensors.index.json"
OPTIONS = ("--engine", "local", "--device", "cpu", "--workers", 2, "--json", "--shard-size", "9MB")
SLOW = 12e6
"""Bytes a second on each connection: a shard goes up in 0.8 s."""
BEAT_S = 0.4
"""A claim's, in the runs that contest it; else they would wait for 15 s."""
QUICKLY = (
    "from raymerge.runtime.object_claim import ObjectClaim;"
    f"ObjectClaim.__init__.__kwdefaults__['beat_s'] = {BEAT_S};"
    "from raymerge.cli import main; main()"
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A bucket with two models, recipes over them, and what a merge of each has to give."""

    place: Place
    sources: S3
    """Where the models lie."""
    s3: S3
    """Where this test's merges go."""
    proxy: Proxy
    expected: Mapping[str, Mapping[str, str]]

    @property
    def out(self) -> str:
        return self.s3.url("out")

    @property
    def names(self) -> list[str]:
        return sites.names(self.out)

    def merged(self, *more: object, method: str = "linear") -> Done:
        """A merge in this process."""
        recipe = self.place / f"{method}.yaml"
        return self.place.run("merge", recipe, self.out, *OPTIONS, *more)

    def process(self, *more: object, method: str = "linear") -> subprocess.Popen[str]:
        """A merge in a process of its own, that gives signs of life in quick succession."""
        words = ["merge", self.place / f"{method}.yaml", self.out, *OPTIONS, *more]
        return subprocess.Popen(
            [sys.executable, "-c", QUICKLY, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Wait for something to happen while a merge runs."""
        give_up = time.monotonic() + 30
        while not ready():
            assert process.poll() is None, finish(process)
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def stop_when(self, ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Wait likewise, and stop it while that is still so."""
        self.until(ready, process)
        process.send_signal(signal.SIGSTOP)
        while not ready():
            process.send_signal(signal.SIGCONT)
            self.until(ready, process)
            process.send_signal(signal.SIGSTOP)

    def check_whole(self, method: str = "linear") -> None:
        """The merge is there, and nothing else of any run."""
        found = sites.stored(self.out)
        assert sites.hashes(found) == self.expected[method]
        assert not [name for name in found if name.startswith(".raymerge")]
        assert b"<UploadId>" not in self.s3.uploads().body


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two models of six shards' worth of tensors, and the merges of them on this disk."""
    place = Place(tmp_path_factory.mktemp("six"))
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"model.layers.{i}.weight": torch.randn(1100, 2000, generator=generator).bfloat16()
            for i in range(12)
        }
        place.model(name, tensors, max_shard_bytes=18_000_000)
    for method, weight in (("linear", 0.3), ("slerp", None)):
        knobs = {"weight": weight} if weight else {"t": 0.4}
        top = {} if weight else {"base": "a"}
        recipe = place.recipe(method, ("a", "b")[bool(top) :], parameters=knobs, **top)
        done = place.run("merge", recipe, place / f"ref-{method}", *OPTIONS)
        assert done.rc == 0, done.err
        recipe.rename(place / f"{method}.path")
    return place


@pytest.fixture(scope="module")
def stored(models: Place, s3_server: S3) -> S3:
    """Where the models lie in a bucket, and recipes that read them there."""
    s3 = replace(s3_server, prefix="interrupted/")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        for name in ("a", "b"):
            sites.store(models / name, s3.url(name))
    for method in ("linear", "slerp"):
        text = (models / f"{method}.path").read_text()
        (models / f"{method}.yaml").write_text(text.replace(f"{models.path}/", s3.url()))
    return s3


@pytest.fixture(scope="module")
def expected(models: Place) -> Mapping[str, Mapping[str, str]]:
    """Hashes of the shards of each merge."""
    return {
        method: sites.hashes(
            {path.name: path.read_bytes() for path in (models / f"ref-{method}").iterdir()}
        )
        for method in ("linear", "slerp")
    }


@pytest.fixture
def bench(
    models: Place, stored: S3, expected: Mapping[str, Mapping[str, str]], s3: S3, s3_proxy: Proxy
) -> Bench:
    """The models in a bucket, reached through a slow proxy."""
    s3_proxy.bytes_per_s = SLOW
    return Bench(models, stored, s3, s3_proxy, expected)


@pytest.fixture
def replace_shard(models: Place, stored: S3) -> Iterator[Callable[[str], None]]:
    """Puts another file of that name in the place of one of `b`; its own is there afterwards."""
    names: list[str] = []

    def put(name: str, last: bytes) -> None:
        content = (models / "b" / name).read_bytes()
        assert stored.request("PUT", f"b/{name}", content[: -len(last)] + last).status == 200

    def put_other(name: str) -> None:
        names.append(name)
        put(name, bytes(4))

    yield put_other
    for name in names:
        put(name, (models / "b" / name).read_bytes()[-4:])


def uploading(bench: Bench) -> bool:
    """A shard is on its way while another has landed."""
    landed = any("/unit-" in name for name in bench.names)
    return landed and b"<UploadId>" in bench.s3.uploads().body


def test_a_killed_merge_is_finished_by_the_same_command(bench: Bench) -> None:
    process = bench.process()
    bench.stop_when(lambda: uploading(bench), process)
    process.kill()
    assert finish(process).rc == -9
    landed = [name for name in bench.names if "/unit-" in name]
    assert INDEX not in bench.names
    assert b"<UploadId>" in bench.s3.uploads().body

    bench.proxy.bytes_per_s = None
    bench.proxy.log.clear()
    done = bench.merged()

    assert done.rc == 0, done.err
    assert done.json["resumed_units"] == len(landed) > 0
    assert done.json["bytes_written"] < sum(s["bytes"] for s in done.json["shards"])
    bench.check_whole()


def test_a_second_driver_and_another_recipe_are_refused(bench: Bench) -> None:
    process = bench.process()
    bench.until(lambda: ".raymerge/claim.json" in bench.names, process)
    same, other = bench.merged(), bench.merged(method="slerp")

    assert (same.rc, other.rc) == (2, 2)
    assert "is being written by process" in same.json["error"]["message"]
    assert "unfinished merge of another recipe" in other.json["error"]["message"]
    bench.proxy.bytes_per_s = None
    assert finish(process).rc == 0
    bench.check_whole()


def test_a_driver_that_is_overwritten_stops_and_publishes_nothing(bench: Bench) -> None:
    first = bench.process()
    bench.until(lambda: uploading(bench), first)
    # Its units take for ever now: it has to notice in the midst of one.
    bench.proxy.bytes_per_s = 1e5
    began = time.monotonic()
    second = bench.process("--overwrite", method="slerp")
    told = finish(first, 30)
    took_s = time.monotonic() - began
    bench.proxy.bytes_per_s = None

    assert told.rc == 2, told.err
    assert "was taken over by process" in told.json["error"]["message"]
    assert took_s < 15
    done = finish(second)
    assert done.rc == 0, done.err
    bench.check_whole("slerp")


def test_of_two_that_begin_at_once_one_wins(bench: Bench) -> None:
    racers = [bench.process() for _ in range(2)]
    told = sorted((finish(racer) for racer in racers), key=lambda done: done.rc)

    assert [done.rc for done in told] == [0, 2]
    assert "is being written by process" in told[1].json["error"]["message"]
    bench.check_whole()


def test_a_source_that_is_replaced_before_it_is_read_is_named(
    bench: Bench, replace_shard: Callable[[str], None]
) -> None:
    bench.proxy.bytes_per_s = None
    name = "model-00001-of-00003.safetensors"

    def put_other(*_: object) -> None:
        replace_shard(name)

    with pytest.raises(SourceError, match="changed since it was planned") as caught:
        raymerge.merge(bench.place / "linear.yaml", bench.out, engine="local", on_plan=put_other)
    assert bench.sources.url(f"b/{name}") in caught.value.message
    assert not [name for name in bench.names if not name.startswith(".raymerge")]


def test_a_source_that_is_replaced_between_two_ranges_is_named(
    bench: Bench, replace_shard: Callable[[str], None]
) -> None:
    name = "model-00002-of-00003.safetensors"
    ranges = 0

    def put_other(exchange: Exchange) -> None:
        nonlocal ranges
        ranges += exchange.method == "GET" and exchange.path.endswith(f"b/{name}")
        # Headers take two requests.
        if ranges == 4:
            replace_shard(name)

    bench.proxy.bytes_per_s = None
    bench.proxy.choose = put_other
    done = bench.merged()

    assert done.rc == 3
    assert bench.sources.url(f"b/{name}") in done.json["error"]["message"]
    assert "changed since it was planned" in done.json["error"]["message"]
    assert INDEX not in bench.names
    again = bench.merged()
    assert again.rc == 2, "what is there is of the old sources"
    assert "sources that have changed" in again.json["error"]["message"]


def test_a_shard_is_written_again_where_the_end_of_its_upload_was_lost(bench: Bench) -> None:
    bench.proxy.bytes_per_s = None
    last = in_turn(
        Fault(Kind.RESET), concerns=lambda one: "uploadId" in one.query and one.method == "POST"
    )
    first = in_turn(Fault(Kind.TRUNCATE), concerns=lambda one: "uploads" in one.query)
    bench.proxy.choose = lambda exchange: first(exchange) or last(exchange)

    done = bench.merged()

    assert done.rc == 0, done.err
    assert bench.proxy.faults == {Kind.RESET: 1, Kind.TRUNCATE: 1}
    assert done.json["retries"] >= 2
    bench.check_whole()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_interrupted_run_does_not_wait_for_a_silent_server(bench: Bench, method: str) -> None:
    process = bench.process()
    bench.until(lambda: uploading(bench), process)

    def hang(exchange: Exchange) -> Fault | None:
        return Fault(Kind.DELAY, 100) if exchange.method == method else None

    bench.proxy.choose = hang
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    done = finish(process, 100)
    assert done.rc == 130, done.err
    assert time.monotonic() - began < 15
    bench.proxy.choose, bench.proxy.bytes_per_s = never, None
    assert bench.merged().rc == 0
    bench.check_whole()
