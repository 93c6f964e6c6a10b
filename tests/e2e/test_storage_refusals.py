"""What cannot be reached or read ends a merge with exit 3, soon, naming the URL and the cause."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Done, Place
from tests.servers.azurite import Azure
from tests.servers.gcs import Gcs
from tests.servers.hub_state import Hub
from tests.servers.seaweed import S3
from tests.storage.interposer import interposed, refuse

SOON_S = 30
ANSWERS = 200
"""Of a server that answers all in one way: more than anybody asks."""
EXPIRED = refuse("400 Bad Request", "ExpiredToken", "The provided token has expired.")
ELSEWHERE = refuse(
    "400 Bad Request",
    "AuthorizationHeaderMalformed",
    "the region 'us-east-1' is wrong; expecting 'eu-west-1'",
)
S3_CASES: Mapping[str, tuple[dict[str, str], Any, str]] = {
    "wrong bucket": ({}, None, "there is no nobodys-bucket"),
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "access was denied .*SignatureDoes"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, None, "access was denied"),
    "expired token": ({"AWS_SESSION_TOKEN": "old"}, EXPIRED, "credentials have expired"),
    "wrong region": ({}, ELSEWHERE, "lies in another region .*eu-west-1"),
}
"""What is in the environment, what a server in between says, and what the user is told."""
NOBODY = {
    "source": {"AWS_ENDPOINT_URL": "http://nobody.invalid"},
    "destination": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
}
"""No such host, and no such server; each is waited for a while."""
ROLES = ("source", "destination")


def attempt(place: Place, role: str, url: str) -> Done:
    """A merge with one end at a URL and the others on this disk; it has to end soon."""
    place.llamas()
    recipe = place.recipe("linear", parameters={"weight": 1.0})
    out = str(place / "out")
    if role == "source":
        recipe.write_text(recipe.read_text().replace(str(place / "b"), url))
    else:
        out = url
    began = time.monotonic()
    done = place.run("merge", recipe, out, "--json", "--engine", "local", "--device", "cpu")
    assert time.monotonic() - began < SOON_S
    assert not (place / "out").exists()
    return done


def check(done: Done, url: str, cause: str) -> None:
    assert done.rc == 3, done.out
    assert url in done.error["message"]
    assert re.search(cause, done.error["message"]), done.error["message"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("case", S3_CASES)
def test_a_bucket(
    place: Place, s3: S3, monkeypatch: pytest.MonkeyPatch, case: str, role: str
) -> None:
    environment, answer, cause = S3_CASES[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = "s3://nobodys-bucket/m" if case == "wrong bucket" else s3.url("m")
    with ExitStack() as stack:
        if answer is not None:
            server = stack.enter_context(interposed(s3.endpoint))
            server.faults.extend([answer] * ANSWERS)
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        done = attempt(place, role, url)
    check(done, url, cause)


@pytest.mark.parametrize("role", ROLES)
def test_a_server_that_is_not_there(
    place: Place, s3: S3, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    for name, value in NOBODY[role].items():
        monkeypatch.setenv(name, value)
    check(attempt(place, role, s3.url("m")), s3.url("m"), "could not be reached")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("container", "environment", "cause"),
    [
        ("nobodys", {}, "there is no nobodys"),
        ("models", {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}, "access was denied"),
    ],
    ids=["wrong container", "wrong key"],
)
def test_a_container(  # noqa: PLR0917 - of which most are pytest's
    place: Place,
    azure: Azure,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    environment: Mapping[str, str],
    cause: str,
    role: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = replace(azure, container=container).url("m")
    check(attempt(place, role, url), url, cause)


@pytest.mark.parametrize("role", ROLES)
def test_a_bucket_of_google(
    place: Place, gcs: Gcs, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "wrong")
    check(attempt(place, role, gcs.url("m")), gcs.url("m"), "access was denied")


@pytest.mark.parametrize(
    ("role", "repo", "cause"),
    [
        ("source", "org/nothing", "no such repository|not there|404"),
        ("source", "org/private", "no such repository|not there|404"),
        ("source", "org/gated", "gated"),
        ("destination", "org/mine", "no right to write"),
    ],
)
def test_a_repository(place: Place, hub: Hub, role: str, repo: str, cause: str) -> None:
    hub.add("org/private", {"config.json": b"{}"}, private=True)
    hub.add("org/gated", {"config.json": b"{}"}, gated=True)
    url = f"hf://{repo}"
    check(attempt(place, role, url), repo, cause)
