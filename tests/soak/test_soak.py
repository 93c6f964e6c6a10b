"""Many merges on many bad days; none is ever wrong. `make soak` has two hundred."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
import torch

from raymerge.runtime import ray_cluster
from tests import sites
from tests.conftest import Place
from tests.servers.proxy import proxy
from tests.servers.seaweed import S3
from tests.soak.trials import SHARD_BYTES, Outcome, Soak, summary

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
FEW = 12
TRIALS = os.environ.get("RAYMERGE_SOAK", "0:200")
"""Which ones, `first:end`."""


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory, s3_server: S3) -> Iterator[Soak]:
    """Models of three shards' worth in a bucket behind a proxy, and a Ray that knows of it."""
    place = Place(tmp_path_factory.mktemp("soak"))
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"model.layers.{i}.weight": torch.randn(1100, 2000, generator=generator).bfloat16()
            for i in range(6)
        }
        place.model(name, tensors, max_shard_bytes=SHARD_BYTES)
    recipe = place.any_recipe("dare_ties")
    done = place.merge(recipe, "ref", "--shard-size", SHARD_BYTES)
    assert done.rc == 0, done.err
    expected = sites.hashes({p.name: p.read_bytes() for p in (place / "ref").iterdir()})
    s3 = replace(s3_server, prefix="soak/")
    with pytest.MonkeyPatch.context() as patch, proxy(s3.endpoint) as between:
        for name, value in s3.at(between.endpoint).env.items():
            patch.setenv(name, value)
        for name in ("base", "a", "b"):
            sites.store(place / name, s3.url(name))
        recipe.write_text(recipe.read_text().replace(f"{place.path}/", s3.url()))
        ray_cluster.connect(None, workers=2)
        yield Soak(recipe, s3, between, expected)
        ray.shutdown()


def run(soak: Soak, numbers: range) -> list[Outcome]:
    outcomes = []
    for number in numbers:
        outcomes.append(soak.run(number))
        print(outcomes[-1])  # noqa: T201 - what is going on
    print(f"\n{summary(outcomes)}")  # noqa: T201 - the figures
    return outcomes


@pytest.mark.timeout(600)
def test_a_dozen_bad_days(soak: Soak) -> None:
    assert not [one for one in run(soak, range(FEW)) if one.wrong]


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_bad_days(soak: Soak) -> None:
    first, _, end = TRIALS.partition(":")
    assert not [one for one in run(soak, range(int(first), int(end))) if one.wrong]
