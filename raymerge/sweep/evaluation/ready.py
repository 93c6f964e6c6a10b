"""Whether what evaluates is there, and how many of it at once: known before anything is merged."""

from __future__ import annotations

import ast
import shutil
from importlib.util import find_spec
from pathlib import Path

from raymerge.errors import PlanError
from raymerge.machine import gpu_names, num_cpus
from raymerge.recipe.wording import did_you_mean
from raymerge.sweep.evaluation import harness
from raymerge.sweep.evaluation.fingerprint import file_of
from raymerge.sweep.evaluation.model import Command, Evaluating, Function, Harness


def slots_here(evaluating: Evaluating) -> list[str | None]:
    """The CUDA devices of each evaluation that this machine has room for at once.

    Names as in CUDA_VISIBLE_DEVICES; None where the sweep reserves none, and leaves all to it.

    Raises:
        PlanError: There are fewer devices than one evaluation needs.
    """
    by_cpus = max(1, int(num_cpus() / evaluating.cpus)) if evaluating.cpus else 1
    if not evaluating.gpus:
        return [None] * by_cpus
    names, size = gpu_names(), max(1, int(evaluating.gpus))
    if size > len(names):
        raise PlanError(
            f"evaluate: gpus is {evaluating.gpus:g}, and this machine has {len(names)}; lower it, "
            "or give --address of a cluster"
        )
    sharing = 1 if evaluating.gpus >= 1 else int(1 / evaluating.gpus)
    sets = [",".join(names[i : i + size]) for i in range(0, len(names) - size + 1, size)]
    slots: list[str | None] = [*sets * sharing]
    return slots[:by_cpus] if evaluating.cpus else slots


def check_ready(evaluating: Evaluating) -> None:
    """Raise PlanError if what evaluates is not to be found on this machine."""
    check_installed(evaluating)
    evaluator = evaluating.evaluator
    if isinstance(evaluator, Command):
        program = evaluator.arguments[0]
        if "{" not in program and shutil.which(program) is None:
            remedy = "give its path, or mend PATH"
            if Path(program).expanduser().is_file():
                remedy = "make it executable (chmod +x), and write its path without ~"
            raise PlanError(
                f"evaluate: command: {program} is no program that can be run here; {remedy}"
            )
    elif isinstance(evaluator, Function):
        _check_function(evaluator.target)


def check_installed(evaluating: Evaluating) -> None:
    """Raise PlanError if the harness is what evaluates, and is not installed."""
    if isinstance(evaluating.evaluator, Harness) and find_spec("lm_eval") is None:
        raise PlanError(
            "evaluate: lm_eval: needs lm-evaluation-harness, which is not installed; install it "
            f"with: {harness.INSTALL}"
        )


def _check_function(target: str) -> None:
    where, _, name = target.rpartition(":")
    found = file_of(where)
    is_file = where.endswith(".py")
    if found is None and find_spec(where.partition(".")[0]) is not None:
        return  # by an importer of its own
    if found is not None and not is_file and found.suffix == ".py" and not found.is_file():
        return  # in an archive
    if found is None or not found.is_file():
        what = f"no file {where}" if is_file else f"no module {where}"
        raise PlanError(
            f"evaluate: python: there is {what}, as seen from {Path.cwd()}; what is relative is "
            "so to where the sweep is started"
        )
    if found.suffix != ".py":
        return
    try:
        names = _names_in(ast.parse(found.read_bytes()))
    except (SyntaxError, ValueError, OSError) as error:
        raise PlanError(f"evaluate: python: {found} cannot be read: {error}") from error
    if names and name not in names:
        raise PlanError(
            f"evaluate: python: {where} has no {name}.{did_you_mean(name, names)}",
        )


_MAKES_NAMES = ("globals", "locals", "vars", "exec", "setattr", "modules")


def _names_in(module: ast.Module) -> set[str]:
    """What a module's own statements name, without running any; none where that is not all."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(f"used {node.attr}")
        elif isinstance(node, ast.Name):
            found.add(node.id if isinstance(node.ctx, ast.Store) else f"used {node.id}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return set() if found & _HIDDEN else {name for name in found if " " not in name}


_HIDDEN = {"*", "__getattr__", *(f"used {name}" for name in _MAKES_NAMES)}
"""By these a module has names that no statement of it shows."""
