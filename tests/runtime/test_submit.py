"""What may be submitted, and what travels. The job server itself is in tests/e2e/test_submit.py."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest

import raymerge
from raymerge.cli import main
from raymerge.cli.submit import flags_for_merge
from raymerge.cli.submit import submit as submit_command
from raymerge.errors import ClusterError, PlanError
from raymerge.runtime import job_server
from raymerge.runtime.record import raymerge_version
from raymerge.runtime.submit import check_address, check_out, read_runtime_env, submit
from tests.conftest import Place

NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("https://ray.example.org/team/", "https://ray.example.org/team"),
        ("10.0.0.7:8265", "http://10.0.0.7:8265"),
    ],
)
def test_an_address_is_the_job_server_s_url(given: str, url: str) -> None:
    assert check_address(given) == url


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ray://head:10001", "Ray's client"),
        ("auto", "http://HEAD:8265"),
        ("s3://bucket", "no URL of a job server"),
        ("http://:8265", "no URL of a job server"),
        ("http://me:hush@head:8265", "RAY_AUTH_TOKEN"),
    ],
)
def test_an_address_of_something_else_is_refused_with_advice(given: str, words: str) -> None:
    with pytest.raises(ClusterError) as caught:
        check_address(given)
    assert words in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "out",
    [
        "/shared/out",
        "s3://bucket/out",
        "hf://org/name@main",
        "abfss://c@a.dfs.core.windows.net/out",
    ],
)
def test_a_destination_that_the_cluster_can_find(out: str) -> None:
    check_out(out)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("merged", "absolute path"),
        ("./merged", "absolute path"),
        ("https://store.example.org/out?sig=hush", "own role"),
        ("s3://id:hush@bucket/out", "own role"),
    ],
)
def test_a_destination_that_it_cannot_or_that_has_a_secret(out: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_out(out)
    assert words in str(caught.value)
    assert "hush" not in str(caught.value)


def recipe_of(folder: Path, *models: str) -> raymerge.recipe.Recipe:
    path = folder / "recipe.yaml"
    path.write_text(f"merge_method: karcher\nmodels: [{', '.join(models)}]\n")
    return raymerge.load(path)


@pytest.mark.parametrize("model", ["models", "./models", "../models/a", "~/models", "a/b/c"])
def test_a_source_relative_to_this_machine_is_refused_with_its_line(
    tmp_path: Path, model: str
) -> None:
    with pytest.raises(PlanError, match=r"recipe\.yaml:2: .* relative to a folder") as caught:
        submit(recipe_of(tmp_path, model), "/out", address=NOBODY)
    assert caught.value.source is not None


def test_a_folder_here_is_no_repository_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(tmp_path, "org/model")
    with pytest.raises(ClusterError, match="no job server answers"):
        submit(recipe, "/out", address=NOBODY)
    (tmp_path / "org" / "model").mkdir(parents=True)
    with pytest.raises(PlanError, match="relative to a folder"):
        submit(recipe, "/out", address=NOBODY)


def test_a_folder_that_is_sent_may_hold_sources_and_has_to_hold_the_recipe(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "./adapters")
    (tmp_path / "adapters").mkdir()
    with pytest.raises(ClusterError, match="no job server answers"):
        submit(recipe, "/out", address=NOBODY, working_dir=tmp_path)
    (tmp_path / "other" / "adapters").mkdir(parents=True)
    with pytest.raises(PlanError, match="has to lie in it"):
        submit(recipe, "/out", address=NOBODY, working_dir=tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("working_dir: .", "--working-dir"),
        ("- pip", "not a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_runtime_environment_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=words):
        read_runtime_env(path)


# --- what is started there -----------------------------------------------------------------------


def started(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> dict[str, Any]:
    """What the job server is asked to run, and the files that it is sent."""
    asked: dict[str, Any] = {}

    def note(_address: str, entrypoint: str, **keys: Any) -> None:
        folder = Path(keys["runtime_env"]["working_dir"])
        files = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*.yaml")}
        asked.update(keys, entrypoint=shlex.split(entrypoint), files=files)

    monkeypatch.setattr(job_server, "start_job", note)
    submit(*arguments, address=NOBODY, **options)
    return asked


def test_the_recipe_travels_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets.yaml").write_text("password: hush")
    recipe = recipe_of(tmp_path, "/models/a", "/models/b")
    asked = started(monkeypatch, recipe, "s3://bucket/a b", flags=["--seed=7"])

    assert asked["files"] == {"recipe.yaml": recipe.text}
    assert asked["entrypoint"] == [
        "raymerge", "merge", "recipe.yaml", "s3://bucket/a b", "--engine", "ray",
        "--address", "auto", "--expect-version", raymerge_version(), "--seed=7",
    ]  # fmt: skip
    assert asked["runtime_env"].keys() == {"working_dir"}


def test_all_stages_of_a_recipe_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "staged.yaml"
    path.write_text(
        "name: first\nmerge_method: karcher\nmodels: [/a, /b]\n---\n"
        "merge_method: karcher\nmodels: [first, /c]\n"
    )
    asked = started(monkeypatch, raymerge.load(path), "/out")
    assert asked["files"] == {"staged.yaml": path.read_text()}


def test_a_folder_travels_with_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    recipe = recipe_of(tmp_path / "deep", "/models/a")
    environment = {"env_vars": {"HF_HUB_OFFLINE": "1"}}
    asked = started(monkeypatch, recipe, "/out", working_dir=tmp_path, runtime_env=environment)
    assert asked["entrypoint"][2] == "deep/recipe.yaml"
    assert asked["runtime_env"] == {**environment, "working_dir": str(tmp_path)}


EVERY_FLAG = [
    "--json", "--overwrite", "--quiet", "--workers", "3", "--device", "cuda", "--shard-size",
    "2GB", "--memory", "1GiB", "--device-memory", "3GiB", "--seed", "5", "--stats", "--wait", "60s",
    "--gpus-per-worker", "0.5", "--cpu-workers", "2", "--node-label", "a=b",
    "--placement-group", "mine",
    "--no-cache", "--storage-option", "region=eu-west-1", "--storage-option", "endpoint=http://s",
]  # fmt: skip


def merged_with(flags: Sequence[str]) -> dict[str, Any]:
    """How `raymerge merge` reads flags."""
    context = main.commands["merge"].make_context("merge", ["recipe.yaml", "out", *flags])
    return context.params


def test_merge_reads_the_flags_of_submit_as_they_were_given() -> None:
    own = ["--address", "http://head:8265", "--no-wait", "--stop-on-interrupt"]
    names = ["--submission-id", "mine", "--working-dir", ".", "--runtime-env", "env.yaml"]
    given = ["recipe.yaml", "/out", *own, *EVERY_FLAG, *names]
    context = submit_command.make_context("submit", list(given))

    assert merged_with(flags_for_merge(context)) == merged_with(EVERY_FLAG)
    options = [p for p in submit_command.params if isinstance(p, click.Option)]
    for option in options:
        assert {*option.opts, *option.secondary_opts} & set(given), "a flag that is not tested here"


def test_what_is_left_to_raymerge_is_left_to_it_there() -> None:
    flags = ["--shard-size", "auto", "--memory", "auto"]
    context = submit_command.make_context("submit", ["recipe.yaml", "/out", *flags])
    assert merged_with(flags_for_merge(context)) == merged_with(flags)


def test_a_secret_among_the_storage_options_is_refused(place: Place) -> None:
    recipe = place.any_recipe("linear")
    secret = ("--storage-option", "secret_access_key=hush")
    done = place.run("submit", recipe, "s3://bucket/out", "--address", NOBODY, *secret, "--json")
    assert (done.rc, done.error["type"]) == (2, "PlanError")
    assert "AWS_SECRET_ACCESS_KEY" in done.error["message"]
    assert "hush" not in done.out + done.err


def test_a_flag_that_is_not_given_is_left_to_the_cluster() -> None:
    context = submit_command.make_context("submit", ["recipe.yaml", "/out"])
    assert flags_for_merge(context) == []


# --- another raymerge, no cluster ----------------------------------------------------------------


def test_another_version_refuses_to_run(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    done = place.merge(recipe, "out", "--json", "--expect-version", "0.0.1")
    assert (done.rc, done.error["type"]) == (1, "ClusterError")
    assert f"raymerge {raymerge_version()}" in done.error["message"]
    assert "0.0.1" in done.error["message"]
    assert not (place / "out").exists()
    assert place.merge(recipe, "out", "--expect-version", raymerge_version()).rc == 0


def test_without_ray_s_job_client_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymerge.runtime.submit.find_spec", lambda _name: None)
    with pytest.raises(ClusterError, match=r"raymerge\[cluster\]"):
        submit(recipe_of(tmp_path, "/models/a"), "/out", address=NOBODY)


def test_no_server_and_a_silent_one_are_errors_within_seconds(place: Place) -> None:
    recipe = place.any_recipe("ties")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (1, silent.getsockname()[1]):
            began = time.monotonic()
            address = f"http://127.0.0.1:{port}"
            done = place.run("submit", recipe, "/out", "--address", address, "--json")
            assert time.monotonic() - began < 2 * job_server.KNOCK_S
            assert (done.rc, done.error["type"]) == (1, "ClusterError")
            assert done.error["retryable"]
            assert address in done.error["message"]
            assert "port forwarded" in done.error["message"]
