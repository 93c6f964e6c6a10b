"""Recipes of several YAML documents: stages, some of which merge what others make.

    name: tuned                  a stage; its result is a source of whichever stage names it
    merge_method: linear
    ---
    merge_method: slerp          the stage that no other uses is the one that is written
    base_model: tuned

The order of the documents is free. A name counts before a path: what is called like a stage is that
stage's result.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from raymerge.recipe.document import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymerge.errors import RecipeError
    from raymerge.recipe.document import Fields
    from raymerge.recipe.model import Recipe, SourceRef

_NAME = re.compile(r"(?!\.+$)[\w.-]+( [\w.-]+)*")
"""Nothing that a location may be cut at, so that a name is always read back whole."""


def join_stages(documents: Sequence[Fields], recipes: Sequence[Recipe]) -> Recipe:
    """Make one recipe of several documents: that of the output, with the others in its `stages`.

    Args:
        documents: As written; for names and lines.
        recipes: Each document read on its own.

    Raises:
        RecipeError: A name is missing, taken or no name; stages use each other in a circle; more
            than one is used by none.
    """
    names = _read_names(documents)
    numbers = {name: number for number, name in enumerate(names) if name is not None}
    stages = [
        replace(recipe, name=name, results=_results(recipe, numbers))
        for recipe, name in zip(recipes, names, strict=True)
    ]
    order = _order(stages, numbers)
    _check_output(documents, stages)
    *inner, output = (stages[number] for number in order)
    notes = [note for recipe in recipes for note in recipe.no_effect]
    for number in order[:-1]:
        if stages[number].out is not None:
            place = documents[number].place_of("out")
            notes.append(f"{place}: out has no effect: a stage inside a recipe is not written")
        for lender in stages[number].lenders:
            raise _error(
                stages[number],
                lender,
                f"tokenizer: {lender.location} is not merged, and gives its tokenizer to the stage "
                "that is written alone; leave the key out here, and write it there",
            )
    for stage in stages:
        notes.extend(_hidden_paths(stage))
    return replace(output, stages=tuple(inner), no_effect=tuple(notes))


def _read_names(documents: Sequence[Fields]) -> list[str | None]:
    names: list[str | None] = []
    lines: dict[str | None, int] = {}
    for top in documents:
        node = top.get("name")
        name = None if node is None else node.as_text("name")
        place = top.place if node is None else top.place_of("name")
        if name is not None and not _NAME.fullmatch(name):
            raise place.error(
                f"name is {name!r}; allowed: letters, digits, `_`, `-`, `.` and single spaces, so "
                "that other stages can write it where a path may stand"
            )
        if name in lines and name is None:
            raise place.error(
                f"name: missing, as it is in the document on line {lines[name]}; only the stage "
                "that is written can do without one, since others are used by their names"
            )
        if name in lines:
            raise place.error(
                f"name: {name!r} is also the stage on line {lines[name]}; choose another"
            )
        lines[name] = place.line
        names.append(name)
    return names


def _results(recipe: Recipe, numbers: Mapping[str, int]) -> frozenset[str]:
    found = [ref for ref in recipe.all_sources if ref.location in numbers]
    for ref in found:
        if ref.revision is not None:
            raise _error(
                recipe,
                ref,
                f"revision: {ref.location!r} is a stage of this recipe, and its result has no "
                f"revisions; write ./{ref.location} for the folder of that name",
            )
        if ref.adapter is not None:
            raise _error(
                recipe,
                ref,
                f"model: {ref.location}+{ref.adapter.location} adds an adapter to the result of a "
                f"stage, which raymerge cannot. List {ref.adapter.location} as a model of its own "
                f"with base_model: {ref.location}, or run stage {ref.location} by itself and name "
                "its output here",
            )
    return frozenset(ref.location for ref in found)


def _order(stages: Sequence[Recipe], numbers: Mapping[str, int]) -> list[int]:
    """Positions of the stages, each behind those that it uses, otherwise as they are written."""
    uses = {
        number: [numbers[ref.location] for ref in _used(stage)]
        for number, stage in enumerate(stages)
    }
    try:
        return list(TopologicalSorter(uses).static_order())
    except CycleError as error:
        # Listed from what is used to what uses it.
        circle = [stages[number] for number in reversed(error.args[1])]
    user, used = circle[0], str(circle[1].name)
    ref = next(ref for ref in _used(user) if ref.location == used)
    if user is circle[1]:
        raise _error(
            user,
            ref,
            f"model: stage {used!r} uses its own result; rename the stage, or write ./{used} for "
            "the folder of that name",
        )
    path = " <- ".join(str(stage.name) for stage in circle)
    raise _error(
        user, ref, f"model: stages use each other's results in a circle: {path}; none can be first"
    )


def _check_output(documents: Sequence[Fields], stages: Sequence[Recipe]) -> None:
    """Raise unless exactly one stage is used by no other. Without circles there is at least one."""
    used = {ref.location for stage in stages for ref in _used(stage)}
    free = [
        (top, stage) for top, stage in zip(documents, stages, strict=True) if stage.name not in used
    ]
    if len(free) == 1:
        return
    listed = ", ".join(
        f"{stage.name!r} (line {top.place_of('name').line})" if stage.name else "the unnamed one"
        for top, stage in free
    )
    top = next(top for top, stage in free if stage.name)
    raise top.place_of("name").error(
        f"name: {len(free)} stages are used by no other: {listed}; raymerge writes one output, "
        "where mergekit-multi writes several. Give each a recipe file of its own, with the stages "
        "that it uses, or remove those that are not needed"
    )


def _used(stage: Recipe) -> list[SourceRef]:
    return [ref for ref in stage.all_sources if ref.location in stage.results]


def _hidden_paths(stage: Recipe) -> Iterator[str]:
    for ref in _used(stage):
        if os.path.exists(ref.location):  # noqa: PTH110 - as locations are tested elsewhere
            yield (
                f"{Place(stage.path, ref.line)}: {ref.location} is the stage of that name; the "
                f"path {ref.location}, which exists too, has no effect (./{ref.location} reads it)"
            )


def _error(recipe: Recipe, ref: SourceRef, message: str) -> RecipeError:
    return Place(recipe.path, ref.line).error(message)
