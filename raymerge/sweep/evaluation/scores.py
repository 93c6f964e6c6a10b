"""From what an evaluator prints to scores by task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from raymerge.recipe.wording import did_you_mean, listed

_MAX_SHOWN = 120


class NoScoresError(ValueError):
    """What was printed holds no scores that can be used; the message says why."""


def read_scores(printed: bytes) -> dict[str, float]:
    r"""The scores in an evaluator's output: the JSON object that it, or its last line, is.

    Args:
        printed: Standard output, or its end.

    Raises:
        NoScoresError: No such object, no number, NaN or infinite, a task twice or none at all.

    >>> read_scores(b'loading...\n{"math": 41.5}')
    {'math': 41.5}
    """
    text = printed.decode(errors="replace").strip()
    found = _parse(text)
    if not isinstance(found, dict):
        raise NoScoresError(f"it printed {_shown(text)}; expected a JSON object of scores by task")
    if not found:
        raise NoScoresError("it printed an empty JSON object; expected scores by task")
    return {task: _score(task, value) for task, value in found.items()}


def lacking(scores: Mapping[str, float], needed: Iterable[str]) -> str | None:
    """What to say of tasks that have to be there and are not; None where all are.

    >>> lacking({"math": 41.5, "code": 9.0}, ["maths", "code"])
    "no score for maths; it has code, math. Did you mean 'math'?"
    """
    missing = set(needed) - scores.keys()
    if not missing:
        return None
    hint = did_you_mean(min(missing), scores)
    return f"no score for {listed(missing)}; it has {listed(scores)}.{hint}"


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (NoScoresError, RecursionError) as error:
        raise NoScoresError(f"its JSON cannot be used: {error}") from None
    except ValueError:
        pass
    last = text.rpartition("\n")[2].strip()
    try:
        return json.loads(last, object_pairs_hook=_without_repeats)
    except (NoScoresError, RecursionError) as error:
        raise NoScoresError(f"its JSON cannot be used: {error}") from None
    except ValueError:
        what = f"its last line is {_shown(last)}" if last else "it printed nothing"
        raise NoScoresError(f"{what}; expected a JSON object of scores by task") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise NoScoresError("a task is scored twice")
    return unique


def _score(task: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NoScoresError(f"the score of {task} is {_shown(json.dumps(value))}, not a number")
    try:
        score = float(value)
    except OverflowError:
        score = float("inf")
    if not isfinite(score):
        raise NoScoresError(f"the score of {task} is {score}")
    return score


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
