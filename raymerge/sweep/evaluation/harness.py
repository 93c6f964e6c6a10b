"""Score a checkpoint by lm-evaluation-harness: the program behind `evaluate: lm_eval:`.

It is run as a file and imports nothing of ours.

    python harness.py '{"checkpoint": ..., "split": ..., "subset": ..., "tasks": [...], ...}'

From its results to scores: a task, and a group of tasks that has figures of its own, has one score
under its name. That is the metric the recipe names for it, else the first of `PREFERRED` that it
has, with the filter `none` before others. A metric of which less is better counts negative.
Standard errors are left out.

The subset `n` is the first n examples of each task. The splits are `even` and `odd`: every other
example by position, so that those that choose and those of the report never meet.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

INSTALL = 'pip install "raymerge[eval]"'
"""What brings lm-evaluation-harness."""
PREFERRED = (
    "acc_norm",
    "acc",
    "exact_match",
    "mcc",
    "f1",
    "bleu",
    "rougeL",
    "pass@1",
    "perplexity",
    "word_perplexity",
)
"""Metrics in the order in which one is taken for the score of a task."""
_LESS_IS_BETTER = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})


def scores_of(
    results: Mapping[str, Mapping[str, Any]],
    higher_is_better: Mapping[str, Mapping[str, bool | None]],
    metrics: Mapping[str, str],
) -> dict[str, float]:
    """One score per task.

    Args:
        results: By task, figures by `metric,filter`, as the harness has them under `results`.
        higher_is_better: By task and metric, as it has them under that name.
        metrics: What the recipe names: `metric` or `metric,filter`, by task.

    Raises:
        LookupError: A task has not the metric it should have, or none that is known.
    """
    scores = {}
    for task, figures in results.items():
        known = {
            name: float(figure)
            for name, figure in figures.items()
            if "," in name and "_stderr," not in name and isinstance(figure, int | float)
        }
        if not known and task not in metrics:
            continue  # a heading: a group without figures of its own
        name = _metric(task, known, metrics.get(task))
        metric = name.partition(",")[0]
        better = higher_is_better.get(task, {}).get(metric)
        less = metric in _LESS_IS_BETTER if better is None else not better
        scores[task] = -known[name] if less else known[name]
    return scores


def _metric(task: str, known: Mapping[str, float], wanted: str | None) -> str:
    # The filter that leaves answers as they are comes first.
    names = sorted(known, key=lambda name: (not name.endswith(",none"), name))
    for metric in PREFERRED if wanted is None else (wanted,):
        if metric in known:
            return metric
        if found := next((name for name in names if name.partition(",")[0] == metric), None):
            return found
    if wanted is None and len(names) == 1:
        return names[0]
    what = f"no metric {wanted!r}" if wanted else "several metrics and none that is usual"
    raise LookupError(f"{task} has {what}: {', '.join(names)}; name one under metrics")


def _examples(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness is told of the examples to take."""
    count = told["subset"] or told["limit"]
    if told["split"] not in {"even", "odd"}:
        return {"limit": count}
    from lm_eval.tasks import TaskManager

    tasks = TaskManager().load(list(told["tasks"]))["tasks"]
    first = 0 if told["split"] == "even" else 1
    every = {name: range(first, len(task.eval_docs), 2) for name, task in tasks.items()}
    return {"samples": {name: list(found)[:count] for name, found in every.items()}}


def main() -> None:
    """Evaluate and print the scores."""
    told = json.loads(sys.argv[1])
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        import lm_eval
    except ImportError as error:
        raise SystemExit(f"lm_eval cannot be imported ({error}); install it: {INSTALL}") from None
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": told["checkpoint"], **told["model_args"]},
        tasks=list(told["tasks"]),
        log_samples=False,
        bootstrap_iters=0,
        **_examples(told),
        **told["options"],
    )
    try:
        scores = scores_of(found["results"], found.get("higher_is_better", {}), told["metrics"])
    except LookupError as error:
        raise SystemExit(str(error)) from None
    os.write(answer, json.dumps(scores).encode() + b"\n")


if __name__ == "__main__":
    main()
