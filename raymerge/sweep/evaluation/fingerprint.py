"""What an evaluator is, so that scores of another one are not taken for its own.

The recipe's words, and what is in the files that they name: arguments of a command that are files,
its program, the file of a Python function or module. Folders, what a program loads by itself, and
programs that are found by PATH and are no scripts count by their names alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path

from raymerge.errors import PlanError
from raymerge.recipe.wording import listed
from raymerge.sweep.evaluation.model import Command, Evaluating, Evaluator, Function


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Equal for evaluators whose scores mean the same."""

    digest: str
    """Empty where nothing is evaluated."""
    files: Mapping[str, str]
    """The sha256 of each file, by the recipe's word for it."""
    code: frozenset[str] = frozenset()
    """Words for those of them that are programs: others, such as a log, it may write itself."""

    def why_again(self, before: Mapping[str, str]) -> str:
        """A line for people whose evaluations another evaluator made.

        Args:
            before: Its files.
        """
        changed = []
        if before.keys() == self.files.keys():
            changed = [word for word, sha256 in self.files.items() if before[word] != sha256]
        what = listed(changed) or "evaluate, split or a file that they name"
        return (
            f"{what} changed since trials of this sweep were evaluated: they are evaluated again, "
            "but for what was scored by this very evaluator; all scores stay in "
            "raymerge-evaluations.parquet"
        )

    def check_still(self, evaluating: Evaluating) -> None:
        """Raise PlanError if what evaluates is not what it was.

        Args:
            evaluating: What it was taken of.
        """
        now = fingerprint(evaluating).files
        changed = sorted(word for word in self.code if now.get(word) != self.files[word])
        if changed:
            raise PlanError(
                f"{listed(changed)} changed while trials were evaluated, so some of their scores "
                "are of the one before and some of the one after. Nothing more is decided; run the "
                "same command again: what is merged stays, and all are evaluated again"
            )


NOTHING = Fingerprint("", {})
"""Where nothing is evaluated."""


def fingerprint(evaluating: Evaluating) -> Fingerprint:
    """What evaluates, as it is now."""
    if evaluating.evaluator is None:
        return NOTHING
    files, code = {}, set()
    for word, path, sha256 in _files(evaluating.evaluator):
        files[word] = sha256
        if path.suffix in _CODE or os.access(path, os.X_OK):
            code.add(word)
    said = repr((evaluating.evaluator, evaluating.splits, sorted(files.items())))
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return Fingerprint(digest, files, frozenset(code))


_CODE = frozenset({".py", ".sh", ".bash", ".js", ".mjs", ".R", ".jl", ".pl", ".rb", ".lua"})


def _files(evaluator: Evaluator) -> Iterator[tuple[str, Path, str]]:
    """Words and what is in the files that they name; what cannot be read counts by its name."""
    for word, path in _named(evaluator):
        with suppress(OSError, ValueError):  # a word with a null byte is no path
            if path.is_file():
                found = path.stat()
                yield word, path, _sha256(path, (found.st_mtime_ns, found.st_ino, found.st_size))


@lru_cache(maxsize=1024)
def _sha256(path: Path, _state: tuple[int, ...]) -> str:
    """Of a file; it is read again only if its state is another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(evaluator: Evaluator) -> Iterator[tuple[str, Path]]:
    if isinstance(evaluator, Function):
        where = evaluator.target.rpartition(":")[0]
        found = file_of(where)
        if found is not None:
            yield where, found
    elif isinstance(evaluator, Command):
        program = evaluator.arguments[0]
        if "/" in program:
            yield program, Path(program)
        elif (script := shutil.which(program)) and _is_script(Path(script)):
            yield program, Path(script)
        for before, argument in pairwise(evaluator.arguments):
            if before == "-m" and (module := _module(argument)):
                yield argument, module
            # Also `--data=questions.jsonl`, and what a shell is told to run.
            for word in (argument, argument.partition("=")[2], *argument.split()):
                yield word, Path(word)


def file_of(where: str) -> Path | None:
    """The file of a Python function's module, or file, without running any of it."""
    return Path(where) if where.endswith(".py") else _module(where)


def _is_script(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(2) == b"#!"
    return False


def _module(name: str) -> Path | None:
    """The file of a module, where `child` finds it, without running any of it."""
    paths: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for end in name.split("."):
        if paths is None:
            return None
        spec = PathFinder.find_spec(end, paths)
        if spec is None:
            return None
        paths = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
