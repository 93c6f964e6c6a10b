"""The doctor tries places for real, leaves nothing there, and says what is wrong and what to do."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import raymerge
from raymerge.errors import PlanError
from raymerge.runtime.doctor.report import TRIAL_BYTES, Checkup
from raymerge.runtime.doctor.rounds import examine
from raymerge.storage.store import Access
from tests.conftest import Place
from tests.servers.careless import Careless, run_careless
from tests.servers.hub_state import Hub
from tests.servers.seaweed import S3
from tests.storage import interposer
from tests.storage.interposer import interposed
from tests.storage.places import KINDS, StorePlace, open_place

LIMIT_S = 30.0
TOKEN = "hf_plantedTokenOfATest"
SHARD = "model.safetensors"
CONTENT = bytes(range(256)) * 8192
FILES = {SHARD: CONTENT, "config.json": b"{}"}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> StorePlace:
    return open_place(request.param, request)


def source(url: str | Path) -> Checkup:
    (found,) = raymerge.doctor(url).places
    return found


def written(url: str | Path) -> Checkup:
    (found,) = raymerge.doctor(write=[url]).places
    return found


# --- places that are well ------------------------------------------------------------------------


def test_a_store_is_written_to_and_nothing_is_left(store: StorePlace) -> None:
    found = written(store.url)

    assert found.problems == ()
    assert (found.role, found.url) == ("destination", store.url)
    assert found.written is not None
    assert found.read is not None
    assert found.written.bytes == found.read.bytes == TRIAL_BYTES
    assert min(found.written.seconds, found.read.seconds, found.latency_s or 0) > 0
    assert found.facts["objects"] == "0 below it"
    assert found.facts["identity"]
    assert store.store.pins() == {}
    assert store.num_unfinished() == 0


def test_a_store_is_read_from(store: StorePlace) -> None:
    for name, content in FILES.items():
        store.store.put(name, content)
    found = source(store.url)

    assert found.problems == ()
    assert found.read is not None
    assert found.read.bytes == TRIAL_BYTES
    assert found.facts["read from"] == SHARD
    assert found.facts["files"] == "2, 2.0 MiB"
    assert found.written is None


def test_a_folder_is_tried_and_is_as_it_was(place: Place) -> None:
    place.llamas()
    before = sorted(place.path.rglob("*"))
    out = place / "not" / "there"
    diagnosis = raymerge.doctor(place / "a", write=[out, place / "a"])
    read, absent, present = diagnosis.places

    assert diagnosis.ok
    assert sorted(place.path.rglob("*")) == before
    assert read.read is not None
    assert 0 < read.read.bytes == max(path.stat().st_size for path in (place / "a").iterdir())
    assert absent.written is not None
    assert absent.written.bytes == TRIAL_BYTES
    assert set(absent.facts) == {"identity", "file system", "free"}
    assert any("--overwrite" in note for note in present.notes)


@pytest.mark.parametrize("gated", [False, True])
def test_a_repository_is_read_from(hub: Hub, monkeypatch: pytest.MonkeyPatch, gated: bool) -> None:  # noqa: FBT001
    commit = hub.add("org/model", FILES, gated=gated)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens[TOKEN] = "write"
    found = source("hf://org/model")

    assert found.problems == ()
    assert found.facts["identity"] == "tester, token to write"
    assert found.facts["repository"] == f"public, {'' if gated else 'not '}gated"
    assert found.facts["commit"] == commit
    assert found.facts["endpoint"] == hub.endpoint
    assert "2.0 MiB to fetch" in found.facts["cache"]
    assert found.read is not None
    assert found.read.bytes == TRIAL_BYTES


def test_a_repository_is_written_to_on_a_branch_that_goes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/model", FILES)
    blobs = dict(hub.blobs)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens[TOKEN] = "write"
    found = written("hf://org/model")

    assert found.problems == ()
    assert found.written is not None
    assert found.read is not None
    assert found.written.bytes == found.read.bytes == TRIAL_BYTES
    assert hub.repos["org/model"].branches == {"main": commit}
    assert hub.blobs == blobs
    assert (hub.counts["commit"], hub.counts["put"]) == (1, 0)


def test_a_repository_that_is_not_there_is_not_made(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens[TOKEN] = "write"
    found = written("hf://org/new")

    assert found.problems == ()
    assert found.notes == ("a merge makes the repository, private; nothing was written to try it",)
    assert hub.repos == {}


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, "holds pickles .* `raymerge convert`"),
        ({"README.md": b"x"}, "holds no .safetensors file; give the folder of a checkpoint"),
        ({}, "holds no .safetensors file"),
    ],
)
def test_a_source_without_weights_is_wrong(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (problem,) = source(tmp_path).problems
    assert_says(problem, message)


def assert_says(problem: str, message: str) -> None:
    assert re.search(message, problem), problem


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = written(tmp_path / "file").problems
    (below,) = written(tmp_path / "file" / "below").problems
    assert problem == f"{tmp_path}/file is a file; give a folder, or a path where there is nothing"
    assert "Not a directory" in below


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "x" * 30}, r"denied .*Check AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, r"denied \(403 InvalidAccessKeyId"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"reached \(.*Check the endpoint"),
        ({"AWS_PROFILE": "absent"}, r"AWS_PROFILE=absent"),
    ],
)
@pytest.mark.parametrize("flag", [[], ["--write"]], ids=["source", "destination"])
def test_a_wrong_environment_ends_with_3_in_time(  # noqa: PLR0917 - all combinations
    s3: S3,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    message: str,
    flag: list[str],
) -> None:
    s3.request("PUT", f"m/{SHARD}", b"content")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(place / "no-config"))
    began = time.monotonic()
    done = place.run("doctor", *flag, s3.url("m"), "--json")
    (found,) = done.json["places"]

    assert time.monotonic() - began < LIMIT_S
    assert done.rc == 3
    assert not found["ok"]
    assert found["url"] == s3.url("m")
    assert_says(found["problems"][0], message)


def test_a_bucket_that_is_not_there_is_named(s3: S3) -> None:
    for found in (source("s3://absent-bucket/m"), written("s3://absent-bucket/m")):
        assert_says(found.problems[0], "s3://absent-bucket.*there is no absent-bucket")
    assert s3.region in found.facts["region"]


def test_a_server_that_falls_silent_ends_the_visit(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with interposed(s3.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        between.faults.extend([interposer.hang] * 9)
        began = time.monotonic()
        (found,) = examine([s3.url("m")], [], Access(), limit_s=1.0).places

    assert time.monotonic() - began < 3
    assert_says(found.problems[0], "not done within 1 s. Check the endpoint")
    assert found.facts["endpoint"] == between.endpoint


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[Careless]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with run_careless() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


def test_a_store_that_ignores_conditions_is_no_place_for_claims(careless: Careless) -> None:
    found = written("s3://bucket/out")

    assert len(found.problems) == 2
    assert_says(found.problems[0], r"created only if it is absent \(If-None-Match\): two merges")
    assert_says(found.problems[1], r"changed meanwhile \(If-Match\): two merges")
    assert all("Give a store with conditional writes" in problem for problem in found.problems)
    assert found.facts["identity"] == "nobody: requests are not signed"
    assert not careless.objects
    assert not careless.uploads


def test_a_store_that_shows_what_was_aborted_is_no_place_for_shards(careless: Careless) -> None:
    careless.shows_aborted = True
    found = written("s3://bucket/out")

    assert_says(found.problems[-1], "an upload that was aborted shows.*give another one")
    assert not careless.objects
    assert not careless.uploads


def test_unfinished_uploads_are_noted(s3: S3) -> None:
    assert not any("unfinished" in note for note in written(s3.url("out")).notes)
    s3.request("POST", "out/model-00001-of-00002.safetensors", query={"uploads": ""})
    (note,) = written(s3.url("out")).notes

    assert_says(note, r"1 unfinished uploads .*\(model-00001-of-00002.safetensors\)")
    assert "put-bucket-lifecycle-configuration" in note
    assert s3.uploads().body.count(b"<UploadId>") == 1


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("org/absent", None, "no such repository"),
        ("org/private", None, "or it is private.*There is no token"),
        ("org/gated", "read", "gated, and access was not granted; accept its terms"),
        ("org/open", "wrong", "401.*hf auth login"),
    ],
)
def test_a_repository_that_may_not_be_read_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str | None, message: str
) -> None:
    hub.add("org/open", FILES)
    hub.add("org/private", FILES, private=True)
    hub.add("org/gated", FILES, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.tokens[TOKEN] = token
    found = source(f"hf://{repo}")

    assert_says(found.problems[0], message)
    assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    ("place", "token", "message"),
    [
        ("hf://org/open", None, "there is no token: `hf auth login`"),
        ("hf://org/open", "read", "may read only; make one that may write"),
        ("hf://elsewhere/open", "write", r"elsewhere is not among .* \(org, tester\)"),
        ("hf://org/open@" + "0" * 40, "write", "no place on the Hub to write to"),
    ],
)
def test_a_repository_that_may_not_be_written_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, place: str, token: str | None, message: str
) -> None:
    hub.add("org/open", FILES)
    if token:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.tokens[TOKEN] = token
    found = written(place)

    assert_says(found.problems[0], message)
    assert hub.counts["commit"] == 0


def test_hadoop_without_java_says_what_it_needs() -> None:
    (problem,) = source("hdfs://nowhere:1/models").problems
    assert_says(problem, "hdfs://nowhere:1/models cannot be reached.*JAVA_HOME")
    assert "\n" not in problem
    (problem,) = written("hdfs://nowhere:1/models").problems
    assert_says(problem, "read from and not written to. Give a path")


def test_without_a_place_there_is_nothing_to_do() -> None:
    with pytest.raises(PlanError, match="no place to try; give a source"):
        raymerge.doctor()


# --- how it is told ------------------------------------------------------------------------------


def test_the_text_and_the_document_say_the_same(place: Place) -> None:
    place.model("m", {"w": torch.zeros(2**18)})
    (place / "empty").mkdir()
    told = ["doctor", place / "m", place / "empty", "--write", place / "out"]
    text, document = place.run(*told), place.run(*told, "--json")
    lines = text.out.splitlines()

    assert text.rc == document.rc == 3
    assert lines[0] == f"{place / 'm'}  source"
    assert any(line.startswith("  read       1.0 MiB in ") for line in lines)
    assert any(line.startswith(f"  problem   {place / 'empty'} holds no") for line in lines)
    assert lines[-1] == "3 places: 1 with problems"
    assert [each["ok"] for each in document.json["places"]] == [True, False, True]
    assert list(document.json["places"][0]) == [
        "url", "role", "facts", "latency_s", "read", "written", "notes", "problems", "seconds",
        "ok",
    ]  # fmt: skip
    assert json.dumps(document.json)
