from __future__ import annotations

import pytest

from raymerge.errors import PlanError
from raymerge.storage.clients import Use, open_client
from raymerge.storage.options import CLIENT, NAMES, SECRETS, check_options
from raymerge.storage.store import Access
from raymerge.storage.urls import Scheme, destination

VALUES = {
    "checksum_algorithm": "sha256",
    "server_side_encryption": "aws:kms",
    "credential_type": "auto",
    "service_account": "{}",
    "proxy_url": "http://127.0.0.1:1",
    "proxy_excludes": "127.0.0.1",
    "connect_timeout": "5s",
    "read_timeout": "5s",
    "timeout": "5s",
    "endpoint": "http://127.0.0.1:1",
    "base_url": "http://127.0.0.1:1",
    "metadata_endpoint": "http://127.0.0.1:1",
    "msi_endpoint": "http://127.0.0.1:1",
    "authority_host": "http://127.0.0.1:1",
    "region": "eu-west-1",
}
WORDS = {
    "account_name",
    "client_id",
    "federated_token_file",
    "msi_resource_id",
    "object_id",
    "role_arn",
    "role_session_name",
    "sse_kms_key_id",
    "tenant_id",
}
EACH_NAME = [
    (scheme, name)
    for scheme in (Scheme.S3, Scheme.GS, Scheme.AZ)
    for name in sorted(NAMES[scheme] | CLIENT)
    if name != "service_account"  # names a file, which the client reads at once
]


@pytest.mark.parametrize(("scheme", "name"), EACH_NAME)
def test_every_option_is_one_that_obstore_knows(scheme: Scheme, name: str) -> None:
    value = VALUES.get(name, "word" if name in WORDS else "true")
    given = {"region": "eu-west-1"} if scheme is Scheme.S3 else {}
    if scheme is Scheme.AZ:
        given = {"account_name": "account"}
    check_options({name: value}, {scheme})

    # The name of an S3 Express bucket holds its zone.
    root = "root--use1-az4--x-s3" if name == "s3_express" else "root"
    client = open_client(destination(f"{scheme}://{root}"), {**given, name: value}, Use.ASK)

    settings = {**client.config, **(client.client_options or {})}  # type: ignore[union-attr]
    assert str(settings[name]).lower() != "", settings


@pytest.mark.parametrize("name", [*SECRETS, "aws_secret_access_key", "AZURE_STORAGE_ACCOUNT_KEY"])
def test_a_secret_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(PlanError, match=r"set .* in the environment") as caught:
        check_options({name: "PLANTED"}, NAMES.keys())

    assert "PLANTED" not in repr(caught.value)


def test_no_access_holds_a_secret_or_a_typing_error() -> None:
    with pytest.raises(PlanError, match="AWS_SECRET_ACCESS_KEY in the environment"):
        Access(options={"secret_access_key": "PLANTED"})
    with pytest.raises(PlanError, match="did you mean region"):
        Access(options={"regoin": "eu-west-1"})


def test_a_proxy_with_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(PlanError, match="HTTPS_PROXY") as caught:
        check_options({"proxy_url": "http://me:PLANTED@proxy:8080"}, {Scheme.S3})

    assert "PLANTED" not in repr(caught.value)


@pytest.mark.parametrize(
    ("name", "schemes", "message"),
    [
        ("regoin", {Scheme.S3}, "did you mean region"),
        ("aws_region", {Scheme.S3}, "did you mean region"),
        ("skip-signature", {Scheme.GS}, "did you mean skip_signature"),
        ("account_name", {Scheme.S3}, "an option of az://, and this run has none"),
        ("zzzzzz", {Scheme.GS}, "those of gs:// are allow_http, .*base_url"),
        ("region", {Scheme.FILE}, "an option of s3://, and this run has none"),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(
    name: str, schemes: set[Scheme], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        check_options({name: "x"}, schemes)


def test_an_option_of_any_scheme_in_use_is_accepted() -> None:
    check_options({"region": "eu-west-1", "account_name": "a"}, {Scheme.S3, Scheme.ABFSS})


@pytest.mark.parametrize(
    ("endpoint", "given", "environment", "unsigned"),
    [
        pytest.param(None, {}, {}, "true", id="Amazon's, with TLS"),
        pytest.param("https://127.0.0.1:1", {}, {}, "true", id="another, with TLS"),
        pytest.param("http://127.0.0.1:1", {}, {}, None, id="without TLS"),
        pytest.param("HTTP://127.0.0.1:1", {}, {}, None, id="without TLS, in capitals"),
        pytest.param(None, {"unsigned_payload": "false"}, {}, "false", id="as the option says"),
        pytest.param(None, {}, {"AWS_UNSIGNED_PAYLOAD": "false"}, None, id="as is set"),
    ],
)
def test_what_tls_guards_is_not_hashed_for_the_signature(
    endpoint: str | None,
    given: dict[str, str],
    environment: dict[str, str],
    unsigned: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = {"region": "eu-west-1", **given} | ({"endpoint": endpoint} if endpoint else {})
    for use in Use:
        client = open_client(destination("s3://bucket"), options, use)
        assert client.config.get("unsigned_payload") == unsigned  # type: ignore[union-attr]
