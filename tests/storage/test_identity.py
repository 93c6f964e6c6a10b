"""Who asks a store is told by whatever way credentials come, and no secret with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from raymerge.storage.credentials import caller_arn
from raymerge.storage.identity import describe, shortened
from raymerge.storage.store import Access
from raymerge.storage.urls import destination

PLANTED = "PLANTEDSECRETxyz0123456789/abcd+efghijklm"
KEY = "AKIAIOSFODNN7EXAMPLE"
ACCOUNT = "robot@project.iam.gserviceaccount.com"
ARN = "arn:aws:iam::123456789012:user/merger"


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


S3, GS, AZ = "s3://bucket/m", "gs://bucket/m", "az://container/m"
CASES: list[tuple[str, dict[str, str], dict[str, str], str]] = [
    (S3, {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": PLANTED}, {},
     "access key ****************MPLE of AWS_ACCESS_KEY_ID"),
    (S3, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"}, {},
     "web identity, role arn:aws:iam::1:role/x"),
    (S3, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x"}, {}, "role of the container"),
    (S3, {}, {}, "role of the machine, if it has one"),
    (S3, {}, {"skip_signature": "true"}, "nobody: requests are not signed"),
    (S3, {"AWS_SHARED_CREDENTIALS_FILE": "{home}/credentials", "AWS_PROFILE": "work"}, {},
     "access key ****************MPLE of profile work"),
    (GS, {}, {}, "service account of the machine, if it has one"),
    (GS, {"GOOGLE_APPLICATION_CREDENTIALS": "{home}/key.json"}, {},
     f"service account {ACCOUNT} by GOOGLE_APPLICATION_CREDENTIALS"),
    (GS, {"GOOGLE_SERVICE_ACCOUNT": "/no/such/file"}, {},
     "nobody (/no/such/file: No such file or directory) by GOOGLE_SERVICE_ACCOUNT"),
    (GS, {"GOOGLE_BEARER_TOKEN": PLANTED}, {}, "whoever GOOGLE_BEARER_TOKEN is of"),
    (GS, {"GOOGLE_SKIP_SIGNATURE": "true"}, {}, "nobody: requests are not signed"),
    (AZ, {"AZURE_STORAGE_ACCOUNT_KEY": PLANTED}, {}, "account key of AZURE_STORAGE_ACCOUNT_KEY"),
    (AZ, {"AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={PLANTED}"}, {},
     "shared access signature of AZURE_STORAGE_SAS_TOKEN"),
    (AZ, {"AZURE_CLIENT_ID": "me", "AZURE_TENANT_ID": "us", "AZURE_CLIENT_SECRET": PLANTED}, {},
     "client me of tenant us"),
    (AZ, {}, {"use_azure_cli": "true"}, "whoever has logged in with az"),
    (AZ, {}, {}, "managed identity of the machine, if it has one"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "environment", "options", "identity"), CASES)
def test_the_way_that_credentials_come_is_told(  # noqa: PLR0917 - a table's columns
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    url: str,
    environment: dict[str, str],
    options: dict[str, str],
    identity: str,
) -> None:
    key = {"client_email": ACCOUNT, "private_key": PLANTED}
    (tmp_path / "key.json").write_text(json.dumps(key))
    (tmp_path / "credentials").write_text(
        f"[work]\naws_access_key_id = {KEY}\naws_secret_access_key = {PLANTED}\n"
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("{home}", str(tmp_path)))
    facts = describe(destination(url), Access(options=options))

    assert facts["identity"] == identity
    assert PLANTED not in repr(facts)


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        (S3, {"endpoint": "http://127.0.0.1:9", "region": "us-east-1"}),
        (GS, {"endpoint": "https://storage.googleapis.com"}),
        ("abfss://c@lake.dfs.core.windows.net/m",
         {"endpoint": "https://lake.blob.core.windows.net", "account": "lake"}),
        (AZ, {"account": "not named"}),
        ("memory://m/x", {"identity": "this process"}),
    ],
)  # fmt: skip
def test_where_it_is_asked_is_told(url: str, facts: dict[str, str]) -> None:
    assert facts.items() <= describe(destination(url), Access()).items()


@pytest.mark.parametrize("key", ["", "abc", "shortkey", KEY])
def test_of_a_key_four_characters_are_shown_at_most(key: str) -> None:
    shown = shortened(key).removeprefix("access key ")
    assert len(shown) == max(4, len(key))
    assert shown.lstrip("*") in {"", key[-4:]}
    assert len(key) >= 12 or set(shown) == {"*"}


class _Sts(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = (
            "<GetCallerIdentityResponse><GetCallerIdentityResult>"
            f"<Arn>{ARN}</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: stderr is the tests'."""


@contextmanager
def sts() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Sts)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_amazon_says_whose_a_key_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    with sts() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
        assert caller_arn("us-east-1") == ARN
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    assert caller_arn("us-east-1") is None
