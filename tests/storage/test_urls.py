from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.errors import StorageError
from raymerge.storage import same_place, urls
from raymerge.storage.urls import Location, Scheme, destination, join, source, whole


def nowhere(_: str) -> bool:
    return False


def anywhere(_: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("text", "expected", "label"),
    [
        ("models/llama", Location(Scheme.FILE, "", "models/llama"), "llama"),
        ("/data/llama/", Location(Scheme.FILE, "", "/data/llama/"), "llama"),
        ("file:///data/a%20b", Location(Scheme.FILE, "", "/data/a b"), "a b"),
        ("file://localhost/data/a", Location(Scheme.FILE, "", "/data/a"), "a"),
        ("s3://bucket", Location(Scheme.S3, "bucket", ""), "bucket"),
        ("s3://bucket/models/a/", Location(Scheme.S3, "bucket", "models/a"), "a"),
        ("S3://bucket/a%20b", Location(Scheme.S3, "bucket", "a%20b"), "a%20b"),
        ("gs://bucket/a", Location(Scheme.GS, "bucket", "a"), "a"),
        ("az://container/a", Location(Scheme.AZ, "container", "a"), "a"),
        (
            "abfss://container@account.dfs.core.windows.net/x/a",
            Location(Scheme.ABFSS, "container@account.dfs.core.windows.net", "x/a"),
            "a",
        ),
        ("hdfs://name:8020/x/a", Location(Scheme.HDFS, "name:8020", "x/a"), "a"),
        ("hdfs:///x/a", Location(Scheme.HDFS, "", "x/a"), "a"),
        ("memory://m/a", Location(Scheme.MEMORY, "m", "a"), "a"),
        ("hf://org/name", Location(Scheme.HUB, "org/name", ""), "name"),
    ],
)
@pytest.mark.parametrize("as_source", [True, False])
def test_a_location_is_told_by_its_scheme(
    text: str, expected: Location, label: str, *, as_source: bool
) -> None:
    # A path of two parts is a repository's name unless it exists.
    found = source(text, exists=anywhere) if as_source else destination(text)

    assert found == expected
    assert found.label == label


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("org/name", None),
        ("org/name@main", "main"),
        ("hf://org/name@refs/pr/1", "refs/pr/1"),
        ("hf://org/na.me-1_b/", None),
    ],
)
def test_a_source_may_be_a_repository(text: str, revision: str | None) -> None:
    found = source(text, exists=nowhere)

    assert found.scheme is Scheme.HUB
    assert found.revision == revision
    assert "@" not in found.label


def test_a_path_that_exists_is_no_repository() -> None:
    assert source("org/name", exists=lambda path: path == "org/name").scheme is Scheme.FILE


@pytest.mark.parametrize(
    "text", ["./org/name", "../name", "a/b/c", "name", "/org/name", "-a/b", "a/.b"]
)
def test_what_has_not_the_shape_of_a_repository_is_a_path(text: str) -> None:
    assert source(text, exists=nowhere) == Location(Scheme.FILE, "", text)


def test_a_bare_destination_is_always_a_path() -> None:
    assert destination("out/merged") == Location(Scheme.FILE, "", "out/merged")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty text"),
        ("s3://", "s3://bucket/path"),
        ("az:///path", "az://container/path"),
        ("s3a://bucket/a", "written s3://"),
        ("gcs://bucket/a", "written gs://"),
        ("ftp://host/a", "give a path, file://"),
        ("file://host/a", "three slashes: file:///host/a"),
        ("s3://bucket/a/../b", "empty, `.` or `..` part"),
        ("s3://bucket/a//b", "empty, `.` or `..` part"),
        ("hf://buckets/org/name", "is a bucket of the Hub"),
        ("hf://datasets/name", "no model repository"),
        ("hf://org/name/folder", "no model repository"),
        ("hf://name", "hf://org/name"),
    ],
)
def test_what_is_no_location_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        source(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAPLANTED:PLANTED@bucket/a",
        "s3://PLANTED@bucket/a",
        "az://container/a?sv=1&sig=PLANTED",
        "https://account.blob.core.windows.net/c?sig=PLANTED",
        "https://bucket.s3.amazonaws.com/a?X-Amz-Signature=PLANTED",
        "hdfs://user:PLANTED@host/a",
        "https://me:PLANTED@huggingface.co/org/a",
        "https://PLANTED@huggingface.co/org/a",
        "hf://me:PLANTED@org/a",
        "hf://PLANTED@org/a",
        "file://me:PLANTED@host/a",
        "file://PLANTED@host/a",
        "ftp://PLANTED@host/a",
    ],
)
def test_a_location_with_a_secret_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(StorageError) as caught:
        destination(text)

    assert "PLANTED" not in repr(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "joined"),
    [
        ("s3://bucket", "a.json", "s3://bucket/a.json"),
        ("s3://bucket/out/", "x/a.json", "s3://bucket/out/x/a.json"),
        ("out/", "a.json", "out/a.json"),
        ("/", "a.json", "/a.json"),
        ("hdfs:///", "a.json", "hdfs:///a.json"),
    ],
)
def test_a_name_is_joined_to_a_location(text: str, name: str, joined: str) -> None:
    assert str(join(destination(text), name)) == joined


def test_a_path_is_the_same_from_every_folder_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert whole("org/name") == whole("./org/name") == str(tmp_path / "org" / "name")
    assert whole("org/absent") == str(tmp_path / "org" / "absent")
    assert whole(str(tmp_path)) == str(tmp_path)
    monkeypatch.chdir(tmp_path / "org")
    for elsewhere in ("someone/else@main", "hf://org/name", "s3://bucket/a/b", "memory://a/b"):
        assert whole(elsewhere) == elsewhere


PARTS = st.text(st.sampled_from("abz019_-. %é#"), min_size=1, max_size=8).filter(
    lambda part: part not in {".", ".."}
)


@given(
    st.sampled_from(["s3", "gs", "az", "memory", "hdfs"]),
    st.lists(PARTS, max_size=4),
    st.lists(PARTS, min_size=1, max_size=3),
)
def test_what_is_shown_is_read_as_the_same_place(
    scheme: str, parts: list[str], names: list[str]
) -> None:
    place = destination("/".join([f"{scheme}://root", *parts]))

    assert destination(str(place)) == place
    below = join(place, "/".join(names))
    assert destination(str(below)) == below
    assert below.label == names[-1]


def test_the_examples_hold() -> None:
    assert doctest.testmod(urls).failed == 0


@pytest.mark.parametrize(
    ("out", "location", "same"),
    [
        ("s3://b/m", "s3://b/m", True),
        ("s3://b/m", "s3://b/m/model.safetensors", True),
        ("s3://b", "s3://b/model.safetensors", True),
        ("s3://b/m", "s3://b/m/deep/model.safetensors", False),
        ("s3://b/m", "gs://b/m", False),
        ("abfs://c@a.dfs.core.windows.net/m", "abfss://c@a.dfs.core.windows.net/m", True),
        ("az://c/m", "abfss://c@a.dfs.core.windows.net/m", True),
        ("az://c/m", "abfss://c@other.dfs.core.windows.net/m", False),
        ("hf://org/a", "org/a", True),
        ("hf://org/a", "org/a@main", True),
        ("hf://org/a@merged", "org/a", False),
        ("hf://org/a", "org/a@v1", False),
    ],
)
def test_a_destination_that_is_a_source_is_known(
    out: str, location: str, monkeypatch: pytest.MonkeyPatch, *, same: bool
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")
    assert same_place(out, location) == same
