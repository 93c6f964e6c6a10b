"""What every object store owes, held against the real ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError, StorageError
from tests.storage.places import KINDS, PART_BYTES, StorePlace, open_place

NUM_RACERS = 8


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> StorePlace:
    return open_place(request.param, request)


def race(attempt: Callable[[int], Pin | None]) -> list[Pin | None]:
    """What each of several threads got that made the same attempt at once."""
    start = Barrier(NUM_RACERS)

    def run(number: int) -> Pin | None:
        start.wait()
        return attempt(number)

    with ThreadPoolExecutor(NUM_RACERS) as pool:
        return list(pool.map(run, range(NUM_RACERS)))


def test_what_is_not_there_is_none(place: StorePlace) -> None:
    store = place.store

    assert store.head("a") is None
    assert store.read("a") is None
    assert store.pins() == {}
    store.delete("a")


def test_what_is_put_is_read_listed_and_deleted(place: StorePlace) -> None:
    store = place.store
    pins = {name: store.put(name, name.encode()) for name in ("a", "x/b", "x/y/c", ".hidden/d")}

    assert store.pins() == pins
    for name, pin in pins.items():
        assert store.head(name) == pin
        assert store.read(name) == (name.encode(), pin)
    store.delete("x/b")
    assert store.pins().keys() == {"a", "x/y/c", ".hidden/d"}
    assert place.store.put("a", b"other") != pins["a"]
    assert store.read("a") == (b"other", store.head("a"))


@pytest.mark.parametrize(
    "name",
    ["a b", "a#b", "a%20b", "a+b=c&d", "é~[1]", "x,y;z@!"],
    ids=["blank", "hash", "percent", "query", "brackets", "marks"],
)
def test_a_name_is_taken_as_it_is(place: StorePlace, name: str) -> None:
    pin = place.store.put(name, b"content")

    assert place.store.pins() == {name: pin}
    assert place.store.read(name) == (b"content", pin)
    assert place.folder().read(name, 1, 3) == b"on"


def test_an_object_is_created_once(place: StorePlace) -> None:
    pin = place.store.create("claim", b"first")

    assert pin == place.store.head("claim")
    assert place.store.create("claim", b"second") is None
    assert place.store.create("claim", b"first") is None
    assert place.store.read("claim") == (b"first", pin)


def test_of_many_that_create_at_once_one_does(place: StorePlace) -> None:
    store = place.store

    won = race(lambda number: store.create("claim", b"%d" % number))

    assert sum(pin is not None for pin in won) == 1
    winner = next(number for number, pin in enumerate(won) if pin)
    assert store.read("claim") == (b"%d" % winner, won[winner])


def test_an_object_is_replaced_if_it_is_the_expected_one(place: StorePlace) -> None:
    store = place.store
    first = store.put("claim", b"first")

    second = store.replace("claim", b"second", first)

    assert second is not None
    assert second == store.head("claim")
    assert store.replace("claim", b"third", first) is None
    assert store.replace("nothing", b"third", second) is None
    assert store.read("claim") == (b"second", second)
    assert store.pins() == {"claim": second}


def test_of_many_that_replace_at_once_one_does(place: StorePlace) -> None:
    store = place.store
    first = store.put("claim", b"first")

    won = race(lambda number: store.replace("claim", b"%d" % number, first))

    assert sum(pin is not None for pin in won) == 1
    winner = next(number for number, pin in enumerate(won) if pin)
    assert store.read("claim") == (b"%d" % winner, won[winner])


@pytest.mark.parametrize(
    "nbytes", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7]
)
def test_an_upload_is_seen_whole(place: StorePlace, nbytes: int) -> None:
    content = bytes(range(251)) * (nbytes // 251 + 1)

    with place.store.upload("x/shard", part_bytes=PART_BYTES, parts_in_flight=2) as upload:
        buffer = bytearray(2**20 + 3)
        for start in range(0, nbytes, len(buffer)):
            piece = content[start : min(start + len(buffer), nbytes)]
            buffer[: len(piece)] = piece
            upload.write(bytes(buffer[: len(piece)]))
            buffer[:] = bytes(len(buffer))
        assert place.store.head("x/shard") is None
        pin = upload.finish()

    assert pin.size_bytes == nbytes
    assert place.store.head("x/shard") == pin
    assert place.store.pins() == {"x/shard": pin}
    assert place.store.read("x/shard") == (content[:nbytes], pin)
    assert place.num_unfinished() == 0


@pytest.mark.parametrize("changing", [bytearray(8), memoryview(bytearray(8))])
def test_memory_that_may_change_is_not_uploaded(
    place: StorePlace, changing: bytearray | memoryview
) -> None:
    with (
        place.store.upload("a", part_bytes=PART_BYTES, parts_in_flight=2) as upload,
        pytest.raises(TypeError, match="which never change"),
    ):
        upload.write(changing)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_pieces", [0, 1, 12])
def test_an_aborted_upload_leaves_nothing(place: StorePlace, num_pieces: int) -> None:
    before = place.store.put("a", b"before")

    def fail() -> None:
        with place.store.upload("a", part_bytes=PART_BYTES, parts_in_flight=2) as upload:
            for _ in range(num_pieces):
                upload.write(bytes(2**20))
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert place.store.pins() == {"a": before}
    assert place.num_unfinished() == 0


def test_an_upload_replaces_what_was_there(place: StorePlace) -> None:
    before = place.store.put("a", b"before")

    with place.store.upload("a", part_bytes=PART_BYTES, parts_in_flight=2) as upload:
        upload.write(b"after")
        after = upload.finish()
        upload.abort()

    assert after != before
    assert place.store.read("a") == (b"after", after)


def test_a_folder_has_the_objects_directly_in_it(place: StorePlace) -> None:
    for name in ("m/a", "m/b", "m/x/c", "mm/d"):
        place.store.put(name, name.encode() * 3)
    folder = place.folder("m")

    assert folder.sizes() == {"a": 9, "b": 9}
    assert folder.pin("a") == place.store.head("m/a")
    assert folder.read("b", 2, 5) == b"bm/"
    assert folder.read("b", 4, 4) == b""
    with pytest.raises(SourceError, match=f"{place.url}/m/c is not there"):
        folder.pin("c")


def test_a_folder_with_nothing_in_it_is_no_source(place: StorePlace) -> None:
    with pytest.raises(SourceError, match=f"{place.url}/m has no objects; give"):
        place.folder("m").sizes()


def test_one_file_is_a_folder_of_its_own(place: StorePlace) -> None:
    place.store.put("m/one.safetensors", b"one")
    place.store.put("m/two.safetensors", b"two")

    folder = place.folder("m/one.safetensors")

    assert folder.sizes() == {"one.safetensors": 3}
    assert folder.read("one.safetensors", 0, 3) == b"one"
    with pytest.raises(SourceError, match=r"m/none\.safetensors could not be listed: .*not there"):
        place.folder("m/none.safetensors").sizes()


def test_a_range_is_of_the_object_that_was_pinned(place: StorePlace) -> None:
    place.store.put("a", b"before")
    folder = place.folder()
    pin = folder.pin("a")
    view = folder.fetch("a", 0, 6, pin)

    place.store.put("a", b"after!")

    with pytest.raises(SourceError, match=f"{place.url}/a changed since it was planned"):
        folder.fetch("a", 0, 6, pin)
    assert bytes(view) == b"before"
    place.store.delete("a")
    with pytest.raises(SourceError, match="it is not there"):
        folder.fetch("a", 0, 6, pin)


def test_many_objects_are_listed(place: StorePlace) -> None:
    store = place.store
    names = [f"{number:05}" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        pins = dict(zip(names, pool.map(lambda name: store.put(name, b"x"), names), strict=True))

    assert store.pins() == pins
    assert place.folder().sizes() == dict.fromkeys(names, 1)


def test_both_travel_to_another_process(place: StorePlace) -> None:
    pin = place.store.put("a", b"content")
    luggage = pickle.dumps((place.store, place.folder(), pin))
    script = """
import pickle, sys
store, folder, pin = pickle.load(sys.stdin.buffer)
assert store.head("a") == folder.pin("a") == pin
assert bytes(folder.fetch("a", 3, 7, pin)) == b"tent"
"""

    run = subprocess.run(
        [sys.executable, "-c", script], input=luggage, capture_output=True, check=False
    )

    if place.kind == "memory":
        assert run.returncode == 1
        assert b"memory of one process" in run.stderr
    else:
        assert run.returncode == 0, run.stderr.decode()
    again = pickle.loads(luggage)[0]
    assert again.head("a") == pin


def test_what_cannot_be_reached_is_told_soon(place: StorePlace) -> None:
    if place.kind == "memory":
        pytest.skip("memory is always reached")
    wrong = StorePlace(place.kind, place.url.replace("://", "://no-such-"), lambda: 0)

    with pytest.raises(SourceError, match="there is no no-such-"):
        wrong.folder().sizes()
    with pytest.raises(StorageError, match="there is no no-such-"):
        wrong.store.pins()
