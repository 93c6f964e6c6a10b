"""From bucket to bucket on Ray's workers: the bytes of the local engine, from any storage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from raymerge.runtime import ray_cluster
from tests import sites
from tests.e2e.elsewhere import Elsewhere, merge

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
CASES = [
    ("s3", "s3", True, "trim over the model"),
    ("s3", "hf", True, "words of all"),
    ("az", "az", True, "stages"),
    ("gs", "gs", True, "della"),
    ("hf", "s3", True, "ties"),
    ("hf", "s3", False, "sce"),
]
"""Where from, where to, whether the Hub's files go through the cache, and what."""


@pytest.fixture(scope="module")
def on_ray(elsewhere: Elsewhere) -> Iterator[Elsewhere]:
    """A Ray of this machine, whose workers have the environment that leads to all places."""
    ray_cluster.connect(None, workers=2)
    yield elsewhere
    ray.shutdown()


@pytest.mark.parametrize(("start", "goal", "cache", "case"), CASES)
def test_ray_gives_the_bytes_of_the_local_engine(
    on_ray: Elsewhere, start: str, goal: str, case: str, *, cache: bool
) -> None:
    if start not in on_ray.where:
        pytest.skip(f"needs a server of {start}://")
    out = on_ray.out(goal)

    result = merge(on_ray.recipe(case, start), out, engine="ray", cache=cache)

    assert result.engine == "ray"
    assert sites.hashes(on_ray.found(out)) == on_ray.reference(case)
    assert not [name for name in on_ray.found(out) if name.startswith(".raymerge")]
