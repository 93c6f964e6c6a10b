"""A merge on the Hub: one commit to a private repository, and none where somebody was quicker."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import raymerge
from raymerge.errors import ConflictError
from raymerge.runtime.driver import MergeResult
from raymerge.runtime.settings import Progress
from raymerge.storage.hub_cache import state_folder
from tests import sites
from tests.conftest import Place
from tests.servers.hub_state import Hub

INDEX = "model.safetensors.index.json"
OUT = "org/merged"
TOKEN = "hf_not_a_secret_but_may_write"


@pytest.fixture
def models(place: Place, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Two models on the Hub, and a recipe over them."""
    hub.tokens[TOKEN] = "write"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    place.llamas()
    for name in ("a", "b"):
        sites.on_hub(place / name, hub, f"org/{name}")
    recipe = place.recipe("linear", parameters={"weight": 0.5})
    place.run("merge", recipe, place / "ref", "--shard-size", 4000, "--engine", "local")
    recipe.write_text(recipe.read_text().replace(f"{place.path}/", "hf://org/"))
    return place


def merge(models: Place, **options: Any) -> MergeResult:
    run = {"engine": "local", "device": "cpu", "shard_bytes": 4000, **options}
    return raymerge.merge(models / "recipe.yaml", f"hf://{OUT}", **run)


def expected(models: Place) -> dict[str, str]:
    return sites.hashes({path.name: path.read_bytes() for path in (models / "ref").iterdir()})


def test_a_result_is_one_commit_to_a_private_repository(models: Place, hub: Hub) -> None:
    result = merge(models)

    repo = hub.repos[OUT]
    assert repo.private
    # What it begins with, and the merge.
    assert len(repo.commits) == 2
    files = repo.files()
    assert sites.hashes(files) == expected(models)
    assert INDEX in files
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["base_model_relation"] == "merge"
    assert card["base_model"] == ["org/a", "org/b"]
    assert "merge" in card["tags"]

    again = merge(models)
    assert again.resumed_units == len(again.shards)
    assert len(repo.commits) == 2
    assert again.shards == result.shards


def test_somebody_who_commits_in_between_is_not_overwritten(models: Place, hub: Hub) -> None:
    hub.add(OUT, {"README.md": b"mine"}, private=True)
    theirs = {"README.md": b"mine", "notes.txt": b"theirs"}

    def commit(progress: Progress) -> None:
        """Somebody commits while the first shard is worked on."""
        if progress.written_bytes and "notes.txt" not in hub.repos[OUT].files():
            hub.add(OUT, theirs)

    with pytest.raises(ConflictError, match="commit"):
        merge(models, on_progress=commit)

    assert hub.repos[OUT].files() == theirs
    merge(models)
    assert sites.hashes(hub.repos[OUT].files()) == expected(models)
    assert hub.repos[OUT].files()["notes.txt"] == b"theirs"


@pytest.mark.parametrize("cache", [False, True])
def test_a_source_is_read_at_the_commit_it_was_planned_at(
    models: Place, hub: Hub, *, cache: bool
) -> None:
    def commit(*_: object) -> None:
        hub.add("org/b", {"config.json": b"{}"})

    merge(models, on_plan=commit, cache=cache)

    assert sites.hashes(hub.repos[OUT].files()) == expected(models)


def test_a_new_branch_beside_a_checkpoint(models: Place, hub: Hub) -> None:
    """It begins with what main has, the old weights included."""
    merge(models)
    recipe = models / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("0.5", "0.25"))
    run: dict[str, Any] = {"engine": "local", "device": "cpu"}
    with pytest.raises(ConflictError, match="another repository or branch"):
        raymerge.merge(recipe, f"hf://{OUT}", **run)
    result = raymerge.merge(recipe, f"hf://{OUT}@quarter", **run)
    files = hub.repos[OUT].files("quarter")
    assert {name for name in files if name.endswith(".safetensors")} == {
        shard.name for shard in result.shards
    }
    assert sites.hashes(hub.repos[OUT].files()) == expected(models)


def test_what_was_refused_has_no_claim(models: Place, hub: Hub) -> None:
    hub.add(OUT, {INDEX: b"{}"}, private=True)
    with pytest.raises(ConflictError, match="already holds a checkpoint"):
        merge(models)
    hub.repos.pop(OUT)
    recipe = models / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("0.5", "0.25"))
    assert merge(models).shards


def test_what_a_killed_process_has_left_on_its_disk_is_no_hindrance(
    models: Place, hub: Hub
) -> None:
    planned = raymerge.plan(models / "recipe.yaml", out=f"hf://{OUT}", shard_bytes=4000)
    for shard in planned.shards:
        left = state_folder(f"hf://{OUT}@main") / "scratch" / shard.name
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(bytes(shard.nbytes + 1000))
    merge(models)
    assert sites.hashes(hub.repos[OUT].files()) == expected(models)


@pytest.mark.parametrize("commits", [False, True])
def test_a_new_branch_is_still_ours_after_a_kill_unless_somebody_commits(
    models: Place, hub: Hub, *, commits: bool
) -> None:
    merge(models)
    recipe = models / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("0.5", "0.25"))
    out, run = f"hf://{OUT}@quarter", {"engine": "local", "device": "cpu", "shard_bytes": 4000}

    class KilledError(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.written_bytes:
            raise KilledError

    with pytest.raises(KilledError):
        raymerge.merge(recipe, out, on_progress=kill, **run)  # type: ignore[arg-type]
    if not commits:
        assert raymerge.merge(recipe, out, **run).shards  # type: ignore[arg-type]
        return
    hub.add(OUT, hub.repos[OUT].files("quarter") | {"notes.txt": b"theirs"}, branch="quarter")
    with pytest.raises(ConflictError, match="already holds a checkpoint"):
        raymerge.merge(recipe, out, **run)  # type: ignore[arg-type]
