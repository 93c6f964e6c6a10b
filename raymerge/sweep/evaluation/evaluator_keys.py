"""`evaluate:` of a sweep block: which program scores a checkpoint."""

from __future__ import annotations

import shlex

from raymerge.recipe.document import Fields, Items, Node, Scalar
from raymerge.recipe.wording import listed
from raymerge.sweep.evaluation.calls import PLACEHOLDER, PLACEHOLDERS
from raymerge.sweep.evaluation.model import Command, Evaluator, Function, Harness
from raymerge.sweep.evaluation.values import mapping, number, single, singles, whole, words

SETTINGS = ("limit_s", "cpus", "gpus", "tasks")
"""Keys of `evaluate` beside the one that names the evaluator."""
_EVALUATORS = ("command", "python", "lm_eval")
_HARNESS = ("tasks", "metrics", "limit", "model_args")
_HARNESS_OPTIONS = ("num_fewshot", "batch_size", "max_batch_size", "device", "apply_chat_template")


def read_evaluator(settings: Fields) -> Evaluator:
    """The one evaluator that `evaluate` names.

    Raises:
        RecipeError: None, several, or one that cannot be called.
    """
    settings.check_keys("evaluate", (*_EVALUATORS, *SETTINGS))
    given = [key for key in _EVALUATORS if settings.get(key) is not None]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise settings.place.error(f"evaluate: has {what}; allowed: one of {listed(_EVALUATORS)}")
    _check_gpus(settings)
    node = settings.fields[given[0]].node
    if given[0] == "lm_eval":
        return _harness(mapping(node, "lm_eval", "tasks and what the harness takes"))
    return _command(node) if given[0] == "command" else _function(node)


def _check_gpus(settings: Fields) -> None:
    # As Ray has it, and so everywhere.
    number(
        settings,
        "gpus",
        lambda gpus: 0 <= gpus < 1 or gpus.is_integer(),
        "0, a part of one below 1, or a whole number",
    )


def _function(node: Node) -> Function:
    target = node.as_text("python")
    where, _, name = target.rpartition(":")
    if not where or not name.isidentifier():
        raise node.place.error(f"python is {target!r}; allowed: module:function, file.py:function")
    return Function(target)


def _command(node: Node) -> Command:
    if isinstance(node, Items):
        arguments = [item.text if isinstance(item, Scalar) else "" for item in node.items]
    else:
        try:
            arguments = shlex.split(node.as_text("command"))
        except ValueError as error:
            raise node.place.error(f"command: {error}; quotes have to be in pairs") from error
    used = {name for text in arguments for name in PLACEHOLDER.findall(text)}
    if unknown := used - PLACEHOLDERS:
        raise node.place.error(
            f"command: {{{min(unknown)}}} means nothing; allowed: "
            + ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
        )
    if not arguments or "checkpoint" not in used:
        raise node.place.error("command: lacks {checkpoint}, where a trial's path goes")
    return Command(tuple(arguments))


def _harness(fields: Fields) -> Harness:
    fields.check_keys("lm_eval", (*_HARNESS, *_HARNESS_OPTIONS))
    tasks = words(fields, "tasks")
    if not tasks:
        raise fields.place.error("lm_eval: lacks tasks, a list of the harness's names")
    return Harness(
        tasks=tasks,
        metrics={task: str(name) for task, name in singles(fields, "metrics").items()},
        limit=whole(fields, "limit"),
        options={
            key: value
            for key in _HARNESS_OPTIONS
            if (node := fields.get(key)) and (value := single(node, key)) is not None
        },
        model_args=singles(fields, "model_args"),
    )
