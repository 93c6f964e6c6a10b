from __future__ import annotations

import json

import pytest

from raymerge.errors import RecipeError
from raymerge.listing import describe, listing, listing_json
from raymerge.methods import methods

EACH_METHOD = pytest.mark.parametrize("name", sorted(methods()))


def test_the_list_has_a_line_for_each_method_in_columns() -> None:
    head, *lines = listing().splitlines()

    assert head.split() == ["method", "sources", "base", "knobs", "paper"]
    assert [line.split()[0] for line in lines] == list(methods())
    column = head.index("paper")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


@EACH_METHOD
def test_a_description_has_the_paper_and_every_knob(name: str) -> None:
    text = describe(name)
    method = methods()[name]

    assert text.startswith(f"{name} ({method.paper})")
    assert method.summary in text
    for knob in method.knobs.values():
        assert f"  {knob.name}: {knob.allowed}" in text


def test_a_description_says_defaults_as_a_recipe_would() -> None:
    assert "normalize: true or false; one for all, default true" in describe("ties")
    assert "density: a number from 0 to 1; one per source, default 1" in describe("ties")
    assert "t: a number; one for all, required" in describe("slerp")


@EACH_METHOD
def test_the_json_of_one_is_its_entry_in_the_json_of_all(name: str) -> None:
    (one,) = listing_json(name)

    assert one in listing_json(None)
    assert json.loads(json.dumps(one)) == one
    assert one["summary"]
    assert {knob["name"] for knob in one["knobs"]} == methods()[name].knobs.keys()


@pytest.mark.parametrize(("typo", "hint"), [("tise", "'ties'"), ("zzz", "there are arcee_fusion")])
def test_an_unknown_method_is_refused_with_what_there_is(typo: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        describe(typo)
    with pytest.raises(RecipeError, match=hint):
        listing_json(typo)
