"""Call a Python function for its scores: the program behind `evaluate: python:`.

It is run as a file, by any Python that has what the function needs, so it imports nothing of ours.

    python child.py TARGET '{"checkpoint": ..., "split": ..., "subset": ...}'

Scores go to stdout as JSON, whatever the function prints to stderr.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def find(target: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names."""
    where, _, name = target.rpartition(":")
    # As `python -m` would have it.
    sys.path.insert(0, str(Path.cwd()))
    if not where.endswith(".py"):
        return _function(importlib.import_module(where), name)
    path = Path(where)
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and pickle look.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return _function(module, name)


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(module, name)
    return function


def main() -> None:
    """Call it and print what it gives."""
    target, told = sys.argv[1:]
    arguments = json.loads(told)
    answer = os.dup(1)
    os.dup2(2, 1)
    scores = find(target)(
        arguments["checkpoint"], split=arguments["split"], subset=arguments["subset"]
    )
    if not isinstance(scores, Mapping):
        raise SystemExit(f"{target} gave {type(scores).__name__}; expected scores by task")
    printed = json.dumps({str(task): float(score) for task, score in scores.items()})
    os.write(answer, printed.encode() + b"\n")


if __name__ == "__main__":
    main()
