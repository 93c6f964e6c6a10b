"""Writing to a repository: large files first, unseen, and one commit that shows all or nothing."""

from __future__ import annotations

import hashlib
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest

from raymerge.errors import ConflictError, StorageError
from raymerge.storage.hub import HubFolder
from raymerge.storage.hub_upload import HubDestination, UploadedFile
from tests.servers.hub_state import Fault, Hub

SHARDS = {f"model-0000{i}-of-00002.safetensors": random.Random(i).randbytes(9000) for i in (1, 2)}
SMALL = {"model.safetensors.index.json": b'{"weight_map": {}}', "README.md": b"---\n---\n# Out\n"}
FILES = {**SHARDS, **SMALL}
WORKER = """
import pickle, sys
from pathlib import Path
from raymerge.storage.hub_upload import HubDestination
destination, name, path = sys.argv[1:]
record = HubDestination(destination).add(name, Path(path))
sys.stdout.buffer.write(pickle.dumps(record))
"""


@pytest.fixture
def out(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HubDestination:
    hub.tokens["hf_writer"] = "write"
    hub.tokens["hf_reader"] = "read"
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return HubDestination("hf://o/out")


def add_all(out: HubDestination) -> list[UploadedFile]:
    return [out.add(name, content) for name, content in SHARDS.items()]


def publish(out: HubDestination, parent: str) -> str:
    return out.commit(add_all(out), SMALL, message="Merge", parent=parent)


@pytest.mark.parametrize(
    "location", ["hf://datasets/o/out", "s3://o/out", "o", f"hf://o/out@{'0' * 40}"]
)
def test_another_location_is_refused(location: str) -> None:
    with pytest.raises(StorageError, match="is no place on the Hub to write to; allowed"):
        HubDestination(location)


def test_a_repository_is_made_and_is_private(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True)
    assert hub.repos["o/out"].private
    assert parent.location == f"hf://o/out@{hub.repos['o/out'].branches['main']}"
    assert out.open(private=True).location == parent.location
    HubDestination("o/shown").open(private=False)
    assert not hub.repos["o/shown"].private
    assert hub.counts["create"] == 2


def test_nothing_is_seen_before_the_commit_and_all_after(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True).name.revision
    records = add_all(out)
    assert [record.sha256 for record in records] == [
        hashlib.sha256(content).hexdigest() for content in SHARDS.values()
    ]
    assert hub.repos["o/out"].branches["main"] == parent
    assert hub.repos["o/out"].files() == {".gitattributes": b""}
    commit = out.commit(records, SMALL, deletes=[".gitattributes"], message="M", parent=parent)
    assert hub.repos["o/out"].branches["main"] == commit
    assert hub.repos["o/out"].titles[-1] == "M"
    assert hub.repos["o/out"].files() == FILES
    folder = HubFolder("o/out")
    assert folder.location == f"hf://o/out@{commit}"
    for name, content in FILES.items():
        assert folder.read(name, 0, len(content)) == content


def test_a_shard_is_uploaded_from_disk_by_any_process(
    hub: Hub, out: HubDestination, tmp_path: Path
) -> None:
    parent = out.open(private=True).name.revision
    records = []
    for name, content in SHARDS.items():
        scratch = tmp_path / name
        scratch.write_bytes(content)
        command = [sys.executable, "-c", WORKER, out.location, name, str(scratch)]
        done = subprocess.run(command, check=True, capture_output=True, timeout=100)
        records.append(pickle.loads(done.stdout))
        scratch.unlink()
    assert hub.counts["put"] == 2
    out.commit(records, SMALL, message="Merge", parent=parent)
    assert hub.repos["o/out"].files() == {".gitattributes": b"", **FILES}
    assert hub.counts["put"] == 2


def test_a_hash_that_is_known_is_believed(out: HubDestination, tmp_path: Path) -> None:
    out.open(private=True)
    (name, content), *_ = SHARDS.items()
    (tmp_path / "scratch").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    record = out.add(name, tmp_path / "scratch", sha256=sha256)
    assert record == UploadedFile(name, len(content), sha256)
    assert out.missing([record]) == ()


def test_what_the_hub_has_lost_is_missing(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True).name.revision
    kept, lost = add_all(out)
    assert out.missing([kept, lost]) == ()
    del hub.blobs[lost.sha256]
    assert out.missing([kept, lost]) == (lost,)
    assert out.missing([]) == ()
    with pytest.raises(StorageError, match=f"HTTP 400: .*{lost.sha256} does not exist"):
        out.commit([kept, lost], SMALL, message="Merge", parent=parent)
    assert hub.repos["o/out"].branches["main"] == parent
    out.add(lost.name, SHARDS[lost.name])
    out.commit([kept, lost], SMALL, message="Merge", parent=parent)
    assert hub.repos["o/out"].files() == {".gitattributes": b"", **FILES}


def test_somebody_else_in_between_is_a_conflict(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True).name.revision
    theirs = hub.add("o/out", {"theirs.txt": b"first"})
    with pytest.raises(
        ConflictError, match=f"is at commit {theirs}, .* was at {parent}: .*Nothing"
    ):
        publish(out, parent)
    assert hub.repos["o/out"].files() == {"theirs.txt": b"first"}


def test_of_two_merges_one_wins(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True).name.revision
    other = HubDestination(out.location)
    record = other.add("model.safetensors", b"theirs")
    won = publish(out, parent)
    with pytest.raises(ConflictError):
        other.commit([record], {}, message="Merge", parent=parent)
    assert hub.repos["o/out"].branches["main"] == won


def test_a_commit_whose_answer_is_lost_has_happened(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True).name.revision
    hub.fault("commit", Fault(cut_after=0))
    commit = publish(out, parent)
    assert hub.repos["o/out"].branches["main"] == commit
    assert hub.repos["o/out"].titles.count("Merge") == 1
    # A driver that died with the answer on its way runs again, and finds it done.
    assert publish(out, parent) == commit
    assert hub.repos["o/out"].titles.count("Merge") == 1


def test_a_commit_that_failed_is_made_again(hub: Hub, out: HubDestination) -> None:
    parent = out.open(private=True).name.revision
    hub.fault("commit", Fault(status=503))
    hub.fault("commit", Fault(status=429, headers={"Retry-After": "1"}))
    commit = publish(out, parent)
    assert hub.repos["o/out"].branches["main"] == commit
    assert hub.counts["commit"] == 3


def test_another_branch_leaves_main_alone(hub: Hub, out: HubDestination) -> None:
    main = publish(out, out.open(private=True).name.revision)
    trial = HubDestination("hf://o/out@trial-1")
    parent = trial.open(private=True).name.revision
    assert parent == main
    record = trial.add("model.safetensors", b"trial")
    trial.commit([record], {}, deletes=list(FILES), message="Trial", parent=parent)
    assert hub.repos["o/out"].branches["main"] == main
    assert hub.repos["o/out"].files("trial-1").keys() == {".gitattributes", "model.safetensors"}


def test_a_small_file_may_be_large(hub: Hub, out: HubDestination) -> None:
    """A tokenizer of some MB: the Hub says itself what it stores how."""
    parent = out.open(private=True).name.revision
    out.commit(add_all(out), {**SMALL, "spiece.bin": b"x" * 999}, message="M", parent=parent)
    assert hub.repos["o/out"].files()["spiece.bin"] == b"x" * 999


@pytest.mark.parametrize("token", ["hf_reader", "hf_wrong", None])
def test_who_may_not_write_is_told(
    hub: Hub, out: HubDestination, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    out.open(private=False)
    parent = hub.repos["o/out"].branches["main"]
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    told = "HTTP 40[13]: .*`hf auth login` or HF_TOKEN gives one"
    with pytest.raises(StorageError, match=told):
        HubDestination("o/new").open(private=True)
    with pytest.raises(StorageError, match=told):
        out.add("model.safetensors", b"content")
    with pytest.raises(StorageError, match=told):
        out.commit([], SMALL, message="Merge", parent=parent)
    assert hub.repos["o/out"].branches["main"] == parent


def test_offline_nothing_is_written(out: HubDestination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE forbids to write to the Hub; unset it"):
        out.open(private=True)


def test_an_upload_goes_on_after_an_error(hub: Hub, out: HubDestination) -> None:
    out.open(private=True)
    hub.fault("put", Fault(status=503))
    record = out.add("model.safetensors", b"content")
    assert hub.blobs[record.sha256] == b"content"
