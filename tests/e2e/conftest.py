"""What end-to-end tests of storage share: the same models in every kind of place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conftest import Place
from tests.e2e.elsewhere import Elsewhere, write_all
from tests.servers.azurite import Azure, find_azurite
from tests.servers.gcs import Gcs
from tests.servers.hub import run_hub
from tests.servers.hub_fixture import close_session, lead_to
from tests.servers.seaweed import S3

HUB_TOKEN = "hf_not_a_secret_but_may_write"


@pytest.fixture(scope="module")
def elsewhere(
    request: pytest.FixtureRequest,
    s3_server: S3,
    gcs_server: Gcs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Elsewhere]:
    """Models in every kind of place that can be had here; the environment leads to all of them.

    Of a whole module, so that a Ray may be started in the same environment.
    """
    place = Place(tmp_path_factory.mktemp("models"))
    write_all(place)
    folder = f"{request.module.__name__}/"
    servers: dict[str, S3 | Gcs | Azure] = {
        "s3": replace(s3_server, prefix=folder),
        "gs": replace(gcs_server, prefix=folder),
    }
    if find_azurite():
        servers["az"] = replace(request.getfixturevalue("azure_server"), prefix=folder)
    with pytest.MonkeyPatch.context() as patch, run_hub() as hub:
        lead_to(hub, tmp_path_factory.mktemp("hf"), patch)
        hub.tokens[HUB_TOKEN] = "write"
        patch.setenv("HF_TOKEN", HUB_TOKEN)
        there = Elsewhere(place, hub)
        there.fill("path", lambda name: str(place / name))
        there.fill("hf", lambda name: f"hf://org/{name.replace('words/', 'words-')}")
        for kind, server in servers.items():
            for name, value in server.env.items():
                patch.setenv(name, value)
            there.fill(kind, server.url)
        yield there
        close_session()
