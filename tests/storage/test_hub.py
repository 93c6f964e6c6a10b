"""Reading a repository of the Hub: one question to its API, and then ranges of one commit."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from raymerge.checkpoint.catalog import read_catalog
from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError
from raymerge.storage.hub import HEAD_BYTES, HubFolder
from raymerge.storage.hub_names import HubName, parse_hub_name
from tests.conftest import Place
from tests.servers.hub_state import Hub

CONTENT = random.Random(0).randbytes(300_000)
SHARD = "model.safetensors"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://org/name", HubName("org/name", "main")),
        ("org/name", HubName("org/name", "main")),
        ("hf://org/name/", HubName("org/name", "main")),
        ("hf://models/org/name", None),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("hf://org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("hf://org/name@feature/x", HubName("org/name", "feature/x")),
        ("hf://datasets/org/name", None),
        ("hf://org", None),
        ("hf://org/name/file.safetensors", None),
        ("hf://org/name@", None),
        ("/org/name", None),
        ("../name", None),
        ("s3://bucket/name", None),
    ],
)
def test_a_name_is_a_repository_and_a_revision(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match="hf://datasets/o/m is no model on the Hub; allowed"):
        HubFolder("hf://datasets/o/m")


def test_opening_asks_the_api_once(hub: Hub) -> None:
    sha = hub.add("o/m", {SHARD: CONTENT, "config.json": b"{}", "old/pytorch_model.bin": b"x"})
    folder = HubFolder("hf://o/m")
    assert folder.location == f"hf://o/m@{sha}"
    assert folder.sizes() == {SHARD: len(CONTENT), "config.json": 2}
    file = hub.repos["o/m"].commits[sha][SHARD]
    assert folder.pin(SHARD) == Pin(len(CONTENT), file.sha256)
    assert folder.pin("config.json").tag == hub.repos["o/m"].commits[sha]["config.json"].blob_id
    assert hub.counts == {"api": 1}


def test_there_is_no_file_of_another_name(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    with pytest.raises(SourceError, match=r"hf://o/m@[0-9a-f]{40} has no file config.json"):
        HubFolder("o/m").pin("config.json")


@pytest.mark.parametrize("header_bytes", [400, HEAD_BYTES + 5000])
def test_a_header_takes_three_requests_at_most(hub: Hub, header_bytes: int) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    hub.counts.clear()
    assert folder.read(SHARD, 0, 8) == CONTENT[:8]
    assert folder.read(SHARD, 8, header_bytes) == CONTENT[8:header_bytes]
    assert hub.counts.total() <= 3


def test_a_catalog_of_many_shards_is_read_at_once(hub: Hub, place: Place) -> None:
    place.llamas(1)
    files = {path.name: path.read_bytes() for path in (place / "base").iterdir()}
    hub.add("o/m", files)
    num_shards = sum(name.endswith(".safetensors") for name in files)
    assert num_shards > 1
    remote = read_catalog(HubFolder("o/m"), label="m")
    assert hub.counts["api"] == 1
    assert hub.counts["resolve"] + hub.counts["cdn"] <= 3 * num_shards
    assert hub.counts["resolve"] + hub.counts["cdn"] == 2 * num_shards
    assert set(remote.pins) == {name for name in files if name.endswith(".safetensors")}


def test_ranges_are_exact_and_the_signed_address_is_kept(hub: Hub) -> None:
    sha = hub.add("o/m", {SHARD: CONTENT})
    pin = HubFolder("o/m").pin(SHARD)
    hub.counts.clear()
    worker = HubFolder(f"hf://o/m@{sha}")
    draw = random.Random(1)
    spans = [sorted(draw.sample(range(len(CONTENT) + 1), 2)) for _ in range(40)]
    spans += [[0, 0], [0, 1], [len(CONTENT) - 1, len(CONTENT)], [0, len(CONTENT)]]
    for start, stop in spans:
        assert bytes(worker.fetch(SHARD, start, stop, pin)) == CONTENT[start:stop]
    assert hub.counts["api"] == 0
    assert hub.counts["resolve"] == 1
    assert hub.counts["cdn"] == len(spans) - 1
    assert worker.retries == 0


def test_small_files_are_read_by_range_too(hub: Hub) -> None:
    hub.add("o/m", {"config.json": b"0123456789"})
    folder = HubFolder("o/m", cache=False)
    assert folder.read("config.json", 0, 10) == b"0123456789"
    assert bytes(folder.fetch("config.json", 3, 7, folder.pin("config.json"))) == b"3456"
    with pytest.raises(SourceError, match=r"bytes \[5, 11\) were asked for, and it has 10"):
        folder.read("config.json", 5, 11)


def test_many_threads_share_a_folder(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    pin = folder.pin(SHARD)
    spans = [(start, start + 7001) for start in range(0, 290_000, 1000)]
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda span: folder.fetch(SHARD, span[0], span[1], pin), spans))
    assert all(part == CONTENT[a:b] for part, (a, b) in zip(parts, spans, strict=True))
    # What comes belongs to the caller.
    parts[0][:] = bytes(len(parts[0]))
    assert folder.fetch(SHARD, 0, 7001, pin) == CONTENT[:7001]


def test_a_branch_that_moves_changes_nothing(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m@main")
    pin = folder.pin(SHARD)
    hub.add("o/m", {SHARD: CONTENT[::-1], "config.json": b"{}"})
    assert folder.read(SHARD, 0, 100) == CONTENT[:100]
    assert folder.fetch(SHARD, 100, 200, pin) == CONTENT[100:200]
    assert folder.cached_path(SHARD, pin).read_bytes() == CONTENT
    assert "config.json" not in folder.sizes()
    assert HubFolder("o/m@main").location != folder.location


def test_a_folder_goes_to_workers_with_what_it_knows(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    hub.counts.clear()
    copy = pickle.loads(pickle.dumps(folder))
    assert (copy.location, copy.sizes()) == (folder.location, folder.sizes())
    assert copy.read(SHARD, 0, 8) == CONTENT[:8]
    assert hub.counts["api"] == 0


def test_a_token_goes_to_the_hub_and_not_to_its_cdn(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["hf_reader"] = "read"
    hub.add("o/m", {SHARD: CONTENT, "config.json": b"{}"}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    folder = HubFolder("o/m")
    assert folder.read(SHARD, 0, 8) == CONTENT[:8]
    assert folder.fetch(SHARD, 10, 18, folder.pin(SHARD)) == CONTENT[10:18]
    assert folder.read("config.json", 0, 2) == b"{}"
    assert hub.authorized["api"] == hub.authorized["resolve"] == 1
    assert hub.counts["cdn"] > 0
    assert hub.authorized["cdn"] == 0
