"""`raymerge inspect`: a table for people, a document for programs, a picture for both."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Place


def test_it_prints_its_document(place: Place) -> None:
    place.llamas()
    done = place.run("inspect", place / "a", place / "b", "--base", place / "base", "--json")

    assert (done.rc, done.err) == (0, "")
    document = done.json
    assert list(document) == [
        "base", "sources", "total", "groups", "uncompared", "differences", "findings",
        "bytes_read", "seconds",
    ]  # fmt: skip
    assert list(document["sources"][0]) == [
        "label", "location", "is_base", "tensors", "parameters", "dtype", "quantisation", "widened",
        "vocabulary_rows", "vocab_size", "chat_template",
    ]  # fmt: skip
    assert list(document["total"]) == [
        "name", "stack", "layer", "tensors", "parameters", "sources", "pairs",
    ]  # fmt: skip
    assert list(document["total"]["sources"][0]) == [
        "label", "tensors", "parameters", "norm", "base_norm", "norm_ratio", "max_delta",
        "large_share", "unchanged_share",
    ]  # fmt: skip
    assert list(document["total"]["pairs"][0]) == [
        "sources", "cosine", "distance", "sign_conflict_share", "both_changed_share",
    ]  # fmt: skip
    assert [s["label"] for s in document["sources"]] == ["base", "a", "b"]
    assert document["base"] == "base"


def test_the_document_is_json_where_figures_have_no_meaning(place: Place) -> None:
    """No NaN in it: a delta of zeros has no cosine."""
    place.llamas()
    place.model("same", place.llamas())
    done = place.run("inspect", place / "same", place / "a", "--base", place / "base", "--json")

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    document = json.loads(done.out, parse_constant=refuse)
    assert document["total"]["pairs"][0]["cosine"] is None


def test_the_table_has_sources_layers_and_findings(place: Place) -> None:
    place.llamas(3)
    sources = [place / name for name in "abc"]
    done = place.run("inspect", *sources, "--base", place / "base")
    for words in ("model.layers.1", "embeddings", "head", "|delta|/|base|", "a, b", "opposite"):
        assert words in done.out
    assert "large_deltas" not in done.out
    assert "note: a: the largest |delta| is" in done.out
    assert all(line == line.rstrip() for line in done.out.splitlines())

    alone = place.run("inspect", *sources)
    assert alone.rc == 0
    assert "|a-b|" in alone.out
    assert place.run("inspect", place / "a", "--base", place / "base").rc == 0


def test_of_many_pairs_a_layer_shows_the_lowest_and_the_highest(place: Place) -> None:
    place.llamas(3)
    done = place.run("inspect", *(place / name for name in ("base", "a", "b", "c")))
    (header,) = (line for line in done.out.splitlines() if line.startswith("by layer"))

    assert header.split("  ")[-2:] == ["lowest cos", "highest cos"]
    assert "a, c" in done.out


def test_sources_of_one_name_are_told_apart(place: Place) -> None:
    for parent in ("x", "y"):
        Place(place / parent).path.mkdir()
        Place(place / parent).llamas(1)
    done = place.run("inspect", place / "x" / "a", place / "y" / "a", "--json").json

    assert [source["label"] for source in done["sources"]] == ["x/a", "y/a"]


def test_it_exits_as_every_command_does(place: Place) -> None:
    place.llamas()
    assert place.run("inspect").rc == 2
    assert place.run("inspect", place / "a").rc == 2
    gone = place.run("inspect", place / "gone", "--base", place / "base", "--json")
    assert (gone.rc, gone.error["type"]) == (3, "SourceError")


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("base", [[], ["--base"]])
def test_it_draws(place: Place, ending: str, base: list[str]) -> None:
    place.llamas()
    given = [*base, place / "base"]
    path = place / f"picture.{ending}"
    done = place.run("inspect", place / "a", place / "b", *given, "--plot", path)

    assert done.rc == 0, done.err
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_a_picture_that_cannot_be_is_refused_before_anything_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = place.run("inspect", place / "gone", "--base", place / "base", "--plot", "a.gif")
    assert done.rc == 2
    assert ".png or .svg" in done.err

    # To Python this is a package that is not installed.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = place.run("inspect", place / "gone", "--base", place / "base", "--plot", "a.svg")
    assert done.rc == 2
    assert 'pip install "raymerge[plot]"' in done.err


def test_a_picture_that_cannot_be_written_is_a_storage_error(place: Place) -> None:
    place.llamas()
    path = Path(place / "no" / "folder.svg")
    done = place.run("inspect", place / "a", place / "b", "--plot", path, "--json")

    assert (done.rc, done.error["type"]) == (3, "StorageError")
