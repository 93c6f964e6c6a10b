"""Who may: credentials from wherever people keep them, refusals in a line, secrets nowhere."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
import traceback
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from raymerge.errors import RaymergeError, SourceError, StorageError
from raymerge.storage import credentials
from raymerge.storage.clients import STALL_S
from raymerge.storage.credentials import bucket_region
from raymerge.storage.objects import ObjectFolder, ObjectStore
from raymerge.storage.patience import Patience
from raymerge.storage.redaction import redact
from raymerge.storage.store import Access
from raymerge.storage.urls import destination
from tests.servers.seaweed import S3
from tests.storage import interposer
from tests.storage.interposer import interposed, refuse

PLANTED = "PLANTEDSECRETxyz0123456789/abcd+efghijklm"
LIMIT_S = 30.0
BRIEF = Patience(first_contact_s=1.0)
"""The refusals of `e2e` are met with the usual one."""


def folder(url: str, **options: str) -> ObjectFolder:
    return ObjectFolder(destination(url), Access(options=options))


@pytest.fixture
def models(s3: S3) -> S3:
    s3.request("PUT", "m/a", b"content")
    return s3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": PLANTED}, r"denied \(403 SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, r"denied \(403 InvalidAccessKeyId"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"not be reached \(Connection refused"),
        ({"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, r"not be reached \("),
    ],
)
def test_what_a_wrong_environment_leads_to_is_told_soon(
    models: S3, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    where = destination(models.url("m"))
    start = time.monotonic()

    with pytest.raises(SourceError, match=message) as caught:
        ObjectFolder(where, Access(), patience=BRIEF).sizes()

    assert time.monotonic() - start < LIMIT_S
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f"s3://{models.bucket}/{models.prefix}m could not be")
    assert caught.value.message.count("\n") <= 1
    start = time.monotonic()
    with pytest.raises(StorageError, match=message):
        ObjectStore(where, Access(), patience=BRIEF).create("claim", b"mine")
    assert time.monotonic() - start < LIMIT_S


def test_tls_where_there_is_none_is_told_at_once(
    models: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", models.endpoint.replace("http", "https"))

    with pytest.raises(SourceError, match=r"does not speak TLS .*Write http://"):
        folder(models.url("m")).sizes()


def test_a_server_that_never_answers_is_given_up(
    models: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interposed(models.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        between.faults.extend([interposer.hang] * 9)
        access = Access(options={"read_timeout": "1s"})
        start = time.monotonic()

        with pytest.raises(SourceError, match="no byte came within the time"):
            ObjectFolder(destination(models.url("m")), access, patience=BRIEF).sizes()

    assert time.monotonic() - start < 5
    assert STALL_S + Patience().first_contact_s <= LIMIT_S


def test_no_credentials_at_all_is_told_with_the_ways_to_give_them(
    models: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    start = time.monotonic()
    with interposed(models.endpoint) as nobody:
        # What a metadata service is on a laptop: an address that swallows packets.
        nobody.faults.extend([interposer.hang] * 9)

        source = folder(models.url("m"), metadata_endpoint=nobody.endpoint, read_timeout="1s")

        with pytest.raises(SourceError, match="no usable credentials") as caught:
            source.sizes()

    assert time.monotonic() - start < 3
    for way in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", r"raymerge[aws]", "skip_signature=true"):
        assert way in caught.value.message


def test_requests_without_a_signature_are_refused_by_a_private_bucket(
    models: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(SourceError, match=r"denied \(403 AccessDenied"):
        folder(models.url("m"), skip_signature="true").sizes()


def test_half_of_the_keys_is_told(models: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(SourceError, match=r"no usable credentials .*Missing SecretAccessKey"):
        folder(models.url("m")).sizes()


@pytest.fixture
def home(models: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home whose `work` profile has the keys, and an environment without them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    keys = f"aws_access_key_id={models.access_key}\naws_secret_access_key={models.secret_key}\n"
    (tmp_path / ".aws/credentials").write_text(f"[work]\n{keys}")
    (tmp_path / ".aws/config").write_text("[profile work]\nregion = eu-west-1\n")
    return tmp_path


@pytest.mark.usefixtures("home")
def test_a_profile_is_read(models: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")

    assert folder(models.url("m")).sizes() == {"a": 7}
    provider = credentials.profile_credentials()
    assert provider is not None
    assert provider.config.get("region") == "eu-west-1"


def test_the_default_profile_is_read_where_nothing_else_is_given(models: S3, home: Path) -> None:
    file = home / ".aws/credentials"
    file.write_text(file.read_text().replace("[work]", "[default]"))

    assert folder(models.url("m")).sizes() == {"a": 7}


@pytest.mark.usefixtures("home")
def test_a_profile_that_is_not_there_is_named(models: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "play")

    with pytest.raises(SourceError, match=r"AWS_PROFILE=play: .*\(play\) could not be found"):
        folder(models.url("m")).sizes()


@pytest.mark.usefixtures("home")
def test_a_profile_without_boto3_is_told_what_to_install(
    models: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    # As Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "boto3", None)

    with pytest.raises(SourceError, match=r"pip install raymerge\[aws\]"):
        folder(models.url("m")).sizes()


def test_the_region_of_a_bucket_is_asked_for(models: S3) -> None:
    with interposed(models.endpoint) as between:
        region = "x-amz-bucket-region: eu-west-1\r\n"
        between.faults.append(refuse("301 Moved Permanently", "", headers=region))

        assert bucket_region("asked-for", server=between.endpoint) == "eu-west-1"
        assert bucket_region("asked-for", server=between.endpoint) == "eu-west-1"
        assert between.requests == ["HEAD /asked-for HTTP/1.1"]
    assert bucket_region("another", server="http://127.0.0.1:9") is None


def test_no_secret_is_in_an_error_a_repr_or_a_pickle(
    models: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    monkeypatch.setenv("AWS_SESSION_TOKEN", PLANTED[::-1])
    secrets = (PLANTED, PLANTED[::-1])
    shown: list[object] = []
    with interposed(models.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        source = folder(models.url("m"))
        store = ObjectStore(destination(models.url("m")), Access())
        # Servers show what they were asked with; clients must not pass it on.
        words = f"StringToSign {PLANTED} token {PLANTED[::-1]} Signature"
        between.faults.extend([refuse("403 Forbidden", "SignatureDoesNotMatch", words)] * 9)
        calls: list[Any] = [
            source.sizes,
            lambda: store.create("a", b"x"),
            lambda: store.read("a"),
            store.pins,
            lambda: upload(store),
        ]
        for call in calls:
            with pytest.raises(RaymergeError) as caught:
                call()
            shown.extend(everything_about(caught.value))
    shown.extend([repr(source), repr(store), pickle.dumps((source, store))])

    for text in map(str, shown):
        assert not any(secret in text for secret in secrets), text
    assert any("[redacted]" in str(text) for text in shown)


def upload(store: ObjectStore) -> None:
    with store.upload("a", part_bytes=5 * 2**20, parts_in_flight=2) as sent:
        sent.write(b"x")
        sent.finish()


def everything_about(error: RaymergeError) -> list[object]:
    trace = "".join(traceback.format_exception(error))
    return [error, repr(error), json.dumps(error.as_json()), pickle.dumps(copy.copy(error)), trace]


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:PLANTED@host/x",
        "key AKIAPLANTED12345678 is wrong",
        "token hf_PLANTEDplantedPLANTED12",
        "?sv=1&sig=PLANTED%3D&se=2",
        "https://h/x?X-Amz-Credential=PLANTED&X-Amz-Signature=PLANTED",
        "Authorization: Bearer PLANTED",
        "AccountName=a;AccountKey=PLANTED==;Suffix=b",
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str) -> None:
    assert "PLANTED" not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize("text", ["the bucket models is not there", "hf_hub", "sig=", "a/b?c=d"])
def test_what_does_not_is_left(text: str) -> None:
    assert redact(text) == text


UPLOADER = """
import sys, time
from raymerge.storage.objects import ObjectStore
from raymerge.storage.store import Access
from raymerge.storage.urls import destination
store = ObjectStore(destination(sys.argv[1]), Access())
uploads = [store.upload(name, part_bytes=5 * 2**20, parts_in_flight=1) for name in ("a", "other")]
for upload in uploads:
    for _ in range(3):
        upload.write(bytes(5 * 2**20))
print("sent", flush=True)
time.sleep(60)
"""


@pytest.fixture
def killed(s3: S3) -> S3:
    """A place in which a killed process has left two unfinished uploads."""
    with subprocess.Popen(
        [sys.executable, "-c", UPLOADER, s3.url("out")], stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"sent\n"
        run.kill()
    return s3


def test_what_a_killed_upload_left_is_aborted_by_name(killed: S3) -> None:
    store = ObjectStore(destination(killed.url("out")), Access())
    assert killed.uploads().body.count(b"<UploadId>") == 2

    assert store.abort_leftovers(["a", "b"]) == ()

    assert killed.uploads().body.count(b"<UploadId>") == 1
    assert f"{killed.prefix}out/other".encode() in killed.uploads().body


def test_without_boto3_the_rule_is_told(killed: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    store = ObjectStore(destination(killed.url("out")), Access())

    (advice,) = store.abort_leftovers(["a"])

    assert "raymerge[aws] is not installed" in advice
    rule = json.loads(advice.partition("'")[2].partition("'")[0])
    assert rule["Rules"][0]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] > 0
    assert killed.uploads().body.count(b"<UploadId>") == 2


def test_the_rule_is_one_that_amazons_client_knows(s3: S3) -> None:
    import boto3

    from raymerge.storage.leftovers import S3_RULE

    client = boto3.client("s3", endpoint_url=s3.endpoint)

    client.put_bucket_lifecycle_configuration(Bucket=s3.bucket, LifecycleConfiguration=S3_RULE)


def test_a_plan_of_many_shards_takes_one_listing(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        s3.request("PUT", f"m/model-{number:05}.safetensors", b"12345678" + bytes(number))
    with interposed(s3.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        source = folder(s3.url("m"))
        for name in source.sizes():
            source.pin(name)
            source.read(name, 0, 8)

        assert len(between.requests) == 1 + 30


def test_many_threads_make_one_listing(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.request("PUT", "m/a", b"12345678")
    with interposed(s3.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        source = folder(s3.url("m"))
        threads = [Thread(target=source.sizes) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(between.requests) == 1
