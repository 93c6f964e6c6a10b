"""The cache of a node: one download for all, nothing asked twice, and everything without a Hub."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import raymerge
from raymerge.checkpoint.catalog import read_catalog
from raymerge.errors import SourceError, StorageError
from raymerge.storage import hub_cache
from raymerge.storage.hub import HubFolder
from tests.conftest import Place
from tests.servers.hub_state import Fault, Hub

CONTENT = random.Random(0).randbytes(300_000)
SHARD = "model.safetensors"
WORKER = """
import sys
from raymerge.checkpoint.folder import Pin
from raymerge.storage.hub import HubFolder
location, file, size_bytes, tag = sys.argv[1:]
path = HubFolder(location).cached_path(file, Pin(int(size_bytes), tag))
print(path.stat().st_size)
"""


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def download(name: str) -> None:
    """As any other program would."""
    from huggingface_hub import hf_hub_download

    hf_hub_download("o/m", name)


def test_four_processes_download_a_file_once(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    pin = folder.pin(SHARD)
    hub.counts.clear()
    # Slow enough that all four want it at once.
    hub.fault("cdn", Fault(drip_s=0.01))
    arguments = [folder.location, SHARD, str(pin.size_bytes), pin.tag]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    sizes = [worker.communicate(timeout=100)[0] for worker in workers]
    assert [int(size) for size in sizes] == [len(CONTENT)] * 4
    assert hub.counts["cdn"] == 1
    assert hub.counts["api"] == 0


def test_threads_download_a_file_once(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    pin = folder.pin(SHARD)
    hub.fault("cdn", Fault(drip_s=0.002))
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: folder.cached_path(SHARD, pin), range(8)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert hub.counts["cdn"] == 1


def test_what_is_cached_is_read_from_there(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT, "config.json": b"{}"})
    folder = HubFolder("o/m")
    assert folder.uncached_bytes([SHARD, "config.json"]) == len(CONTENT) + 2
    folder.cached_path(SHARD, folder.pin(SHARD))
    assert folder.uncached_bytes([SHARD, "config.json"]) == 2
    hub.counts.clear()
    assert folder.read(SHARD, 0, 8) == CONTENT[:8]
    assert folder.read(SHARD, 8, 200_000) == CONTENT[8:200_000]
    assert hub.counts == {}


def test_a_download_goes_on_after_a_reset(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    hub.fault("cdn", Fault(cut_after=100_000))
    assert folder.cached_path(SHARD, folder.pin(SHARD)).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x"])
def test_a_cached_file_of_another_size_is_refused(hub: Hub, content: bytes) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    folder = HubFolder("o/m")
    pin = folder.pin(SHARD)
    folder.cached_path(SHARD, pin).write_bytes(content)
    wanted = f"in the cache, which has {len(content)} bytes .*expected are 300000 .*Remove it"
    with pytest.raises(SourceError, match=wanted):
        folder.cached_path(SHARD, pin)
    with pytest.raises(SourceError, match=wanted):
        folder.read(SHARD, 0, 8)


def test_space_is_looked_for_first(
    hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(2**21)
    hub.add("o/m", {SHARD: content})
    folder = HubFolder("o/m")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(small_disk / "hub"))
    hub.counts.clear()
    with pytest.raises(StorageError, match=r"has 1\.0 MiB free, and 2\.0 MiB .*--no-cache"):
        folder.cached_path(SHARD, folder.pin(SHARD))
    assert hub.counts["cdn"] == hub.counts["resolve"] == 0
    assert folder.fetch(SHARD, 0, 2**21, folder.pin(SHARD)) == content


def test_a_run_looks_for_space_for_all_its_sources(
    hub: Hub, place: Place, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        place.model(name, {"w": torch.full((170_000,), float(seed))})
        hub.add(f"o/{name}", {path.name: path.read_bytes() for path in (place / name).iterdir()})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(small_disk / "hub"))
    recipe = place / "recipe.yaml"
    recipe.write_text("merge_method: linear\nmodels: [hf://o/a, hf://o/b]\nparameters: {weight: 1}")
    with pytest.raises(StorageError, match=r"has .* free, and 1\.3 MiB .*--no-cache"):
        raymerge.merge(recipe, place / "out", engine="local", device="cpu")
    assert not [path for path in small_disk.rglob("*") if path.suffix == ".safetensors"]
    raymerge.merge(recipe, place / "out", engine="local", device="cpu", cache=False)


def test_a_pinned_commit_is_asked_for_once(hub: Hub) -> None:
    sha = hub.add("o/m", {SHARD: CONTENT})
    sizes = HubFolder(f"o/m@{sha}").sizes()
    assert HubFolder(f"o/m@{sha}").sizes() == sizes
    assert hub.counts["api"] == 1


def test_all_is_there_without_a_hub(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.llamas(1)
    hub.add("o/m", {path.name: path.read_bytes() for path in (place / "base").iterdir()})
    folder = HubFolder("o/m")
    online = read_catalog(folder, label="m")
    for name, pin in online.pins.items():
        folder.cached_path(name, pin)
    hub.counts.clear()
    go_offline(monkeypatch)
    for location in ("hf://o/m", folder.location):
        offline = HubFolder(location)
        assert offline.location == folder.location
        assert read_catalog(offline, label="m") == online
        for name, pin in online.pins.items():
            assert offline.cached_path(name, pin).stat().st_size == pin.size_bytes
    assert hub.counts == {}


def test_what_others_have_fetched_is_there_too(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.llamas(1)
    files = {path.name: path.read_bytes() for path in (place / "base").iterdir()}
    hub.add("o/m", files)
    online = read_catalog(HubFolder("o/m", cache=False), label="m")
    for name in files:
        download(name)
    go_offline(monkeypatch)
    assert read_catalog(HubFolder("o/m"), label="m") == online


def test_what_is_missing_without_a_hub_is_named(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.llamas(1)
    files = {path.name: path.read_bytes() for path in (place / "base").iterdir()}
    hub.add("o/m", files)
    hub.add("o/ours", files)
    ours = HubFolder("o/ours")
    download("model.safetensors.index.json")
    go_offline(monkeypatch)
    with pytest.raises(SourceError, match=r"does not have which commit main is.*HF_HUB_OFFLINE"):
        HubFolder("o/never")
    with pytest.raises(SourceError, match=r"model-00001-of-\d+.safetensors and \d+ other shards"):
        HubFolder("o/m")
    shard = next(name for name in sorted(ours.sizes()) if name.endswith(".safetensors"))
    for read in (
        lambda: ours.read(shard, 0, 8),
        lambda: ours.fetch(shard, 0, 8, ours.pin(shard)),
        lambda: ours.cached_path(shard, ours.pin(shard)),
        lambda: ours.read("config.json", 0, ours.sizes()["config.json"]),
    ):
        with pytest.raises(SourceError, match=r"it is not in the cache .*HF_HUB_OFFLINE") as caught:
            read()
        assert str(caught.value).startswith(ours.location)
    assert hub_cache.recall_pins(ours.name) is not None


def test_a_cache_that_cannot_be_written_to_is_left_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert HubFolder("o/m").read(SHARD, 0, 8) == CONTENT[:8]
