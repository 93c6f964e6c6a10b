"""The keys of a sweep block that say how trials are evaluated and chosen."""

from __future__ import annotations

from collections.abc import Mapping

from raymerge.recipe.document import Field, Fields, Items, Node, Place, Scalar
from raymerge.sweep.evaluation.evaluator_keys import read_evaluator
from raymerge.sweep.evaluation.model import (
    AtLeast,
    By,
    Command,
    Evaluating,
    Evaluator,
    Harness,
    Mean,
    Pareto,
    Rungs,
    Weighted,
)
from raymerge.sweep.evaluation.values import (
    mapping,
    not_negative,
    number,
    numbers,
    positive,
    whole,
    word,
    words,
)
from raymerge.sweep.record import Split

KEYS = ("evaluate", "gates", "at_least", "subset", "split", "keep", "by", "scratch")
"""Keys of a sweep block that `parse` reads."""
LIMIT_S = 3600.0
"""How long an evaluation may take where the recipe does not say."""
GO_ON = 0.5
"""Which part of the trials of a rung goes on where the recipe does not say."""

_HARNESS_SPLITS = frozenset({"even", "odd"})


def parse(section: Mapping[str, Field], place: Place) -> Evaluating:
    """Read the evaluation keys of a sweep block; others in it are left alone.

    Args:
        section: The block's fields (`Fields.fields`).
        place: Where the block begins.

    Raises:
        RecipeError: File, line, key, what is wrong and what is allowed.
    """
    top = Fields(place, section)
    settings = _settings(top)
    evaluator = read_evaluator(settings) if settings else None
    if evaluator is None:
        for key in KEYS:
            if top.get(key) is not None:
                raise top.place_of(key).error(f"{key}: needs evaluate, which is missing")
    gates = numbers(top, "gates")
    at_least = _at_least(top)
    rungs, splits = _rungs(top), _splits(top, evaluator)
    if isinstance(evaluator, Command):
        _check_used(top, evaluator, subset=rungs is not None, split=splits is not None)
    named = words(settings, "tasks") if settings else ()
    if isinstance(evaluator, Harness):
        named = (*named, *evaluator.tasks)
    by = _by(top, named)
    return Evaluating(
        evaluator=evaluator,
        limit_s=number(settings, "limit_s", positive, "a number above 0") or LIMIT_S,
        cpus=number(settings, "cpus", positive, "a number above 0"),
        gpus=number(settings, "gpus", not_negative, "a number from 0 on") or 0.0,
        tasks=tuple(dict.fromkeys((*named, *gates, *at_least, *_of(by)))),
        gates=gates,
        at_least=at_least,
        by=by,
        keep=whole(top, "keep"),
        rungs=rungs,
        splits=splits,
        scratch=word(top, "scratch"),
    )


def _of(by: By) -> tuple[str, ...]:
    match by:
        case Mean():
            return by.tasks
        case Weighted():
            return tuple(by.weights)
        case Pareto():
            return by.tasks


def _settings(top: Fields) -> Fields | None:
    node = top.get("evaluate")
    if node is None:
        return None
    return mapping(node, "evaluate", "command, python or lm_eval")


def _at_least(top: Fields) -> dict[str, AtLeast]:
    node = top.get("at_least")
    if node is None:
        return {}
    fields = mapping(node, "at_least", "tasks with {of: a source's label, minus: points}")
    gates = {}
    for task, field in fields.fields.items():
        gate = mapping(field.node, task, "{of: a source's label, minus: points}")
        gate.check_keys("a gate of at_least", ("of", "minus"))
        source = gate.get("of")
        if source is None:
            raise field.place.error(f"{task}: lacks of, the label of the source to compare with")
        minus = number(gate, "minus", not_negative, "a number from 0 on") or 0.0
        gates[task] = AtLeast(source.as_text("of"), minus, source.place)
    return gates


def _by(top: Fields, named: tuple[str, ...]) -> By:
    node = top.get("by")
    if node is None:
        return Mean(named)
    if not isinstance(node, Fields):
        task = node.as_text("by")
        return Mean(named) if task == "mean" else Weighted({task: 1.0})
    if "pareto" not in node.fields:
        for name, field in node.fields.items():
            if isinstance(field.node, Items):
                raise field.place.error(
                    f"{name} is a list; allowed: weights by task, {{math: 2, code: 1}}, or "
                    "{pareto: [math, code]}"
                )
        return Weighted(numbers(top, "by"))
    node.check_keys("a choice by pareto", ("pareto",))
    tasks = words(node, "pareto")
    if len(tasks) < 2:  # noqa: PLR2004 - one task has no front
        raise node.place.error("pareto: allowed: a list of two tasks or more")
    return Pareto(tasks)


def _rungs(top: Fields) -> Rungs | None:
    node = top.get("subset")
    if node is None:
        return None
    go_on = GO_ON
    sizes: Node | None = node
    if isinstance(node, Fields):
        node.check_keys("subset", ("sizes", "go_on"))
        sizes = node.get("sizes")
        part = number(node, "go_on", lambda part: 0 < part < 1, "a number between 0 and 1")
        go_on = GO_ON if part is None else part
    items = sizes.items if isinstance(sizes, Items) else ()
    found = [item.value for item in items if isinstance(item, Scalar)]
    rising = [size for size in found if type(size) is int and size > 0]
    if not rising or len(rising) != len(items) or sorted(set(rising)) != rising:
        raise node.place.error(
            "subset: allowed: rising whole numbers of examples, [50, 200], or {sizes: [50, 200], "
            "go_on: 0.5}; all examples follow by themselves"
        )
    return Rungs(tuple(rising), go_on)


def _splits(top: Fields, evaluator: Evaluator | None) -> dict[Split, str] | None:
    node = top.get("split")
    if node is None:
        return None
    fields = mapping(node, "split", "{search: a name, final: a name}")
    fields.check_keys("split", ("search", "final"))
    search, final = word(fields, "search"), word(fields, "final")
    if search is None or final is None or search == final:
        raise node.place.error("split: needs search and final, two names of sets of examples")
    if isinstance(evaluator, Harness) and {search, final} != _HARNESS_SPLITS:
        raise node.place.error(
            "split: lm_eval takes every other example: {search: even, final: odd}"
        )
    return {"search": search, "final": final}


def _check_used(top: Fields, command: Command, *, subset: bool, split: bool) -> None:
    text = " ".join(command.arguments)
    for key, wanted in (("subset", subset), ("split", split)):
        if wanted and f"{{{key}}}" not in text:
            raise top.place_of(key).error(
                f"{key}: the command has no {{{key}}}, so it would not know of it"
            )
