"""The command line is a contract: scripts are written against its keys, its codes, its streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymerge.methods import methods
from tests.conftest import Place, finish, shard_hashes, spawn

COMMANDS = ("plan", "merge", "submit", "verify", "convert", "inspect", "methods")


def raymerge(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raymerge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


# --- what comes out ------------------------------------------------------------------------------


def test_merge_prints_its_document(place: Place) -> None:
    base = place.llamas()
    document = place.merge(place.any_recipe("ties"), "out", "--json", "--shard-size", "6kB").json

    assert list(document) == [
        "output", "digest", "tensors", "parameters", "bytes_read", "bytes_written", "seconds",
        "engine", "workers", "retries", "lost_workers", "redone_units", "resumed_units", "shards",
    ]  # fmt: skip
    assert document["output"] == str(place / "out")
    assert document["tensors"] == len(base)
    assert document["parameters"] == sum(tensor.numel() for tensor in base.values())
    assert document["bytes_read"] == 3 * 2 * document["parameters"]
    assert document["bytes_written"] == 2 * document["parameters"]
    assert (document["engine"], document["workers"]) == ("local", 2)
    assert (document["retries"], document["resumed_units"]) == (0, 0)
    assert all(shard.keys() == {"name", "bytes", "sha256"} for shard in document["shards"])
    assert {s["name"]: s["sha256"] for s in document["shards"]} == shard_hashes(place / "out")
    for shard in document["shards"]:
        assert shard["bytes"] == (place / "out" / shard["name"]).stat().st_size


def test_plan_prints_its_document_and_writes_nothing(place: Place) -> None:
    base = place.llamas()
    before = sorted(place.path.rglob("*"))
    recipe = place.any_recipe("ties")
    done = place.run("plan", recipe, "--json", "--shard-size", "6kB", "--device", "cpu")

    assert done.rc == 0
    document = done.json
    assert list(document) == [
        "digest", "method", "recipe", "seed", "nan", "sources", "stages", "steps", "tensors",
        "shards", "units", "stats", "results", "memory", "totals", "vocabulary", "chat_template",
        "tie", "stacks", "config", "dropped", "notes",
    ]  # fmt: skip
    assert {tensor["name"] for tensor in document["tensors"]} == base.keys()
    merged = place.merge(recipe, "out", "--json", "--shard-size", "6kB").json
    assert merged["digest"] == document["digest"]
    assert [(s["name"], s["bytes"]) for s in document["shards"]] == [
        (s["name"], s["bytes"]) for s in merged["shards"]
    ]
    assert sorted({*before, recipe}) == sorted(
        p for p in place.path.rglob("*") if place / "out" not in (p, *p.parents)
    )


def test_a_plan_for_people_names_what_counts(place: Place) -> None:
    place.llamas()
    done = place.run("plan", place.any_recipe("ties", keep="*norm*"))

    assert (done.rc, done.err) == (0, "")
    for words in ("ties", "arXiv:2306.01708", "base", "density 0.4", "peak", "digest", "kept"):
        assert words in done.out


def test_the_graph_of_a_tensor_has_its_reads_and_its_address(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    done = place.run("plan", recipe, "--graph", "model.norm.weight")
    assert done.rc == 0
    for words in ("model.norm.weight", "base", "model-00001-of-00001.safetensors", "bytes "):
        assert words in done.out
    for arguments, why in [
        (("model.norm.weight", "--json"), "--graph prints text"),
        (("", "--json"), "--graph prints text"),
        (("",), "--graph: the tensor's name is empty"),
    ]:
        refused = place.run("plan", recipe, "--graph", *arguments)
        assert (refused.rc, refused.out) == (2, "")
        assert why in refused.err
    missing = place.run("plan", recipe, "--graph", "model.nrom.weight")
    assert missing.rc == 2
    assert "Did you mean 'model.norm.weight'?" in missing.err


def test_verify_prints_its_document_and_exits_with_5_for_a_mismatch(place: Place) -> None:
    place.llamas()
    place.merged(place.any_recipe("ties"))
    document = place.run("verify", place / "out", "--json").json
    assert document.keys() == {
        "checkpoint", "tensors", "parameters", "bytes", "shards", "problems", "notes",
        "checked_sha256", "ok",
    }  # fmt: skip
    assert (document["ok"], document["problems"], document["checked_sha256"]) == (True, [], True)

    shard = next((place / "out").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    done = place.run("verify", place / "out", "--json")
    assert (done.rc, done.json["ok"]) == (5, False)
    assert "sha256" in done.json["problems"][0]
    assert place.run("verify", place / "out").rc == 5


def test_verify_of_nothing_is_a_source_error(place: Place) -> None:
    assert place.run("verify", place / "gone").rc == 3
    (place / "empty").mkdir()
    done = place.run("verify", place / "empty", "--json")
    assert (done.rc, done.error["type"]) == (3, "SourceError")


def test_methods_lists_describes_and_has_a_schema(place: Place) -> None:
    listed = place.run("methods", "--json").json
    assert [method["name"] for method in listed] == list(methods())
    assert {
        "name", "summary", "family", "paper", "base", "min_sources", "max_sources", "knobs",
    } == set(listed[0])  # fmt: skip
    knobs = {"name", "allowed", "per_source", "required", "default"}
    assert all(knob.keys() == knobs for method in listed for knob in method["knobs"])
    assert place.run("methods", "ties", "--json").json[0]["name"] == "ties"
    text = place.run("methods").out
    assert all(name in text for name in methods())
    assert "density" in place.run("methods", "ties").out
    assert place.run("methods", "--schema").json["$schema"].startswith("https://json-schema.org")
    unknown = place.run("methods", "tise", "--json")
    assert (unknown.rc, unknown.error["type"]) == (2, "RecipeError")
    assert "'ties'" in unknown.error["message"]


# --- streams and codes ---------------------------------------------------------------------------


def test_data_goes_to_stdout_and_everything_else_to_stderr(place: Place) -> None:
    place.llamas()
    done = raymerge("merge", place.any_recipe("ties"), place / "out", "--json", "--device", "cpu")

    assert done.returncode == 0
    assert json.loads(done.stdout)["digest"] in done.stderr
    assert "engine local" in done.stderr


def test_quiet_is_silent_but_for_the_data(place: Place) -> None:
    place.llamas()
    done = raymerge("merge", place.any_recipe("ties"), place / "out", "--quiet", "--device", "cpu")

    assert (done.returncode, done.stderr) == (0, "")
    assert str(place / "out") in done.stdout


def test_an_error_is_one_line_on_stderr_and_a_document_on_stdout_if_asked(place: Place) -> None:
    plain = place.run("merge", place / "gone.yaml", place / "out")
    assert (plain.rc, plain.out) == (2, "")
    assert plain.err.startswith("error: ")
    assert plain.err.count("\n") == 1
    asked = place.run("merge", place / "gone.yaml", place / "out", "--json")
    assert asked.error == {
        "type": "RecipeError",
        "message": f"{place / 'gone.yaml'}: no such recipe file",
        "source": None,
        "tensor": None,
        "file": str(place / "gone.yaml"),
        "retryable": False,
    }
    assert asked.err == plain.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--memory", "8Gigs"],
        ["--memory", "0"],
        ["--shard-size", "-1GB"],
        ["--seed", "-1"],
        ["--engine", "spark"],
        ["--device", "tpu"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(place: Place, arguments: list[str]) -> None:
    place.llamas()
    done = place.run("merge", place.any_recipe("linear"), place / "out", *arguments)

    assert done.rc == 2
    assert arguments[0] in done.err
    assert not (place / "out").exists()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(place: Place, command: str) -> None:
    done = place.run(*filter(None, [command]), "--help")

    assert done.rc == 0
    assert len(done.out.splitlines()) > 5
    if command:
        assert command in place.run("--help").out


def test_every_option_has_help() -> None:
    from raymerge.cli import main

    for name, command in main.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), (name, parameter.name)


def test_the_version_is_printed(place: Place) -> None:
    assert "raymerge" in place.run("--version").out


# --- what starts ---------------------------------------------------------------------------------


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert raymerge("--help").returncode == 0
        times.append(time.perf_counter() - began)

    assert min(times) < 1.0, times


HEAVY = {"torch", "ray", "transformers", "huggingface_hub", "obstore", "pyarrow", "pandas"}
LOADED = """
import json, sys
from raymerge.cli import main
try:
    main()
finally:
    sys.stderr.write(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_loaded_by(*arguments: object) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_neither_torch_nor_ray_is_loaded_by_what_needs_neither(place: Place) -> None:
    place.llamas()
    recipe, out = place.any_recipe("ties"), place / "out"
    machine = ["--device", "cpu", "--engine", "auto", "--workers", 1]
    assert not modules_loaded_by("--help") & (HEAVY | {"numpy", "numba", "yaml"})
    assert not modules_loaded_by("plan", recipe, "--json") & (HEAVY | {"numba"})
    # The ledger is Parquet.
    assert modules_loaded_by("merge", recipe, out, "--quiet", *machine) & HEAVY == {"pyarrow"}
    assert not modules_loaded_by("verify", out) & (HEAVY | {"numba"})
    assert not modules_loaded_by("convert", out, place / "copy") & (HEAVY | {"numba"})
    compared = modules_loaded_by("inspect", place / "a", "--base", place / "base")
    assert not compared & (HEAVY | {"matplotlib"})
    assert not modules_loaded_by("methods") & (HEAVY | {"numba"})
    tried = modules_loaded_by("doctor", place / "a", "--write", place / "new")
    assert not tried & (HEAVY | {"numba", "obstore", "huggingface_hub", "pyarrow"})
    assert not modules_loaded_by("merge", recipe, out, "--quiet", *machine) & (HEAVY | {"numba"})


def test_it_runs_where_nothing_can_be_cached(place: Place) -> None:
    """A read-only home must not keep kernels from being compiled."""
    place.llamas(layers=1)
    (place / "file").write_text("")
    nowhere = str(place / "file" / "cache")
    done = raymerge(
        "merge", place.any_recipe("linear"), place / "out", "--device", "cpu", "--json",
        HOME=nowhere, XDG_CACHE_HOME=nowhere,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert Path(place / "out" / "model.safetensors.index.json").exists()


def test_a_place_whose_name_is_no_text(place: Place) -> None:
    place.llamas()
    out = os.fsdecode(bytes(place.path) + b"/m\xe9rge")
    done = finish(spawn("merge", place.any_recipe("linear"), out, "--quiet", "--device", "cpu"))
    assert done.rc == 0, done.err
    assert "m\\udce9rge: " in done.out
    assert finish(spawn("verify", out)).rc == 0
