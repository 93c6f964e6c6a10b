"""The same recipe gives the same bytes wherever its sources lie and wherever its result goes."""

from __future__ import annotations

import json

import pytest

from tests import sites
from tests.e2e.elsewhere import CASES, METHODS, Elsewhere, merge

INDEX = "model.safetensors.index.json"
ROUTES = {
    "path to s3": ("path", "s3", True),
    "s3 to path": ("s3", "path", True),
    "s3 to s3": ("s3", "s3", True),
    "az to az": ("az", "az", True),
    "gs to gs": ("gs", "gs", True),
    "hf to s3, cached": ("hf", "s3", True),
    "hf to s3, by range": ("hf", "s3", False),
    "s3 to hf": ("s3", "hf", True),
}
"""Where from, where to, and whether the Hub's files go through the cache."""
FOUND = ("total", "groups", "uncompared", "differences", "findings")
OF_EVERY_METHOD = ("s3 to s3", "az to az", "hf to s3, cached", "hf to s3, by range")


def check(elsewhere: Elsewhere, case: str, route: str, **options: object) -> None:
    start, goal, cache = ROUTES[route]
    if start not in elsewhere.where:
        pytest.skip(f"needs a server of {start}://")
    out = elsewhere.out(goal)
    recipe = elsewhere.recipe(case, start)
    result = merge(recipe, out, cache=cache, **options)
    files = elsewhere.found(out)

    expected = elsewhere.reference(case)
    assert len(expected) > 2
    assert sites.hashes(files) == expected
    assert {shard.name: shard.sha256 for shard in result.shards} == expected
    assert json.loads(files[INDEX])["weight_map"]
    assert not [name for name in files if name.startswith(".raymerge")]
    assert result.retries == 0


@pytest.mark.parametrize("route", OF_EVERY_METHOD)
@pytest.mark.parametrize("case", METHODS)
def test_every_method_gives_the_same_bytes(elsewhere: Elsewhere, case: str, route: str) -> None:
    check(elsewhere, case, route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", [case for case in CASES if case not in METHODS])
def test_every_feature_gives_the_same_bytes(elsewhere: Elsewhere, case: str, route: str) -> None:
    check(elsewhere, case, route)


@pytest.mark.parametrize("kind", ["s3", "az", "gs", "hf"])
def test_a_url_is_verified_and_inspected_as_a_path_is(elsewhere: Elsewhere, kind: str) -> None:
    if kind not in elsewhere.where:
        pytest.skip(f"needs a server of {kind}://")
    out = elsewhere.out(kind)
    merge(elsewhere.recipe("ties", kind), out)
    run, where = elsewhere.place.run, elsewhere.where

    done = run("verify", out, "--json")
    assert (done.rc, done.json["problems"]) == (0, []), done.err
    told = {}
    for start in ("path", kind):
        models = [where[start](name) for name in ("a", "b")]
        done = run("inspect", *models, "--base", where[start]("base"), "--json")
        assert done.rc == 0, done.err
        told[start] = {key: value for key, value in done.json.items() if key in FOUND}
    assert told[kind] == told["path"]


@pytest.mark.parametrize("kind", ["s3", "az", "gs"])
def test_a_single_object_is_a_source(elsewhere: Elsewhere, kind: str) -> None:
    if kind not in elsewhere.where:
        pytest.skip(f"needs a server of {kind}://")
    place, hashes = elsewhere.place, {}
    for start in ("path", kind):
        url = elsewhere.where[start]("words/a/model.safetensors")
        recipe = place / f"single-{start}.yaml"
        recipe.write_text(f"merge_method: passthrough\nmodels: [{url}]\nparameters: {{scale: 0.9}}")
        out = elsewhere.out(start)
        merge(recipe, out)
        hashes[start] = sites.hashes(elsewhere.found(out))
    assert hashes[kind] == hashes["path"]
    assert hashes[kind]
