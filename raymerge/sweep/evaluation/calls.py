"""What is run to evaluate a checkpoint: the arguments of a program, without a shell."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from raymerge.sweep.evaluation import child, harness
from raymerge.sweep.evaluation.model import Command, Evaluating, Evaluator, Function

PLACEHOLDERS = frozenset({"checkpoint", "subset", "split"})
"""What a command may have in braces."""
WHOLE = "all"
"""What `{subset}` is where every example is meant."""
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""Braces around a name; any others, such as JSON's, stay as they are."""


def arguments_of(
    evaluator: Evaluator, checkpoint: str, *, subset: int | None, split: str
) -> list[str]:
    """The program that evaluates a checkpoint, and its arguments.

    Args:
        evaluator: Of the sweep.
        checkpoint: Path or URL.
        subset: How many examples; None for all.
        split: Which examples, in the evaluator's own word.
    """
    if isinstance(evaluator, Command):
        values = {
            "checkpoint": checkpoint,
            "subset": WHOLE if subset is None else str(subset),
            "split": split,
        }
        return [PLACEHOLDER.sub(lambda m: values[m[1]], text) for text in evaluator.arguments]
    told: dict[str, object] = {"checkpoint": checkpoint, "split": split, "subset": subset}
    if isinstance(evaluator, Function):
        return [*_python(child.__file__), evaluator.target, json.dumps(told)]
    told |= {
        "tasks": evaluator.tasks,
        "metrics": dict(evaluator.metrics),
        "limit": evaluator.limit,
        "options": dict(evaluator.options),
        "model_args": dict(evaluator.model_args),
    }
    return [*_python(harness.__file__), json.dumps(told)]


def _python(script: str | None) -> list[str]:
    assert script is not None
    # -P: our folder must not come before the function's own modules.
    return [sys.executable, "-P", str(Path(script))]


def environment_of(evaluating: Evaluating, devices: str | None) -> Mapping[str, str]:
    """Variables for the program: its GPUs, as many threads as it has CPUs of its own.

    Args:
        evaluating: What it reserves.
        devices: Names of the CUDA devices that it has; None leaves it those of this process.
    """
    given = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    if evaluating.cpus is None:
        return given
    threads = str(max(1, int(evaluating.cpus)))
    return {**given, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
