"""mergekit's own commands, kept running in a process of their own: a start takes five seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

# Calls the function behind the console script named, as the script does. One JSON line in, one out.
_SERVER = """
import contextlib, io, json, sys, traceback
from importlib.metadata import entry_points
commands = {entry.name: entry for entry in entry_points(group="console_scripts")}
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    command, *arguments = json.loads(line)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            commands[command].load().main(args=arguments, standalone_mode=False)
            failed = ""
        except BaseException as error:
            failed = "".join(traceback.format_exception_only(error)) or "failed"
    print(json.dumps([failed, said.getvalue()[-3000:]]), file=answers, flush=True)
"""


class Mergekit:
    """The peer. One command at a time."""

    def __init__(self, python: Path) -> None:
        self._python = python
        self._process = subprocess.Popen(
            [python, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    def run(self, command: str, *arguments: object) -> str:
        """Run one of its commands; returns why it failed, or nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps([command, *map(str, arguments)])
        print(line, file=self._process.stdin, flush=True)
        failed, said = json.loads(self._process.stdout.readline())
        return f"{failed}\n{said}" if failed else ""

    @property
    def version(self) -> str:
        """Which release it is."""
        code = "from importlib.metadata import version; print(version('mergekit'))"
        done = subprocess.run(
            [self._python, "-c", code], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def find_python() -> Path | None:
    """The Python that mergekit is installed for: this one, or RAYMERGE_PEER's."""
    candidates = [Path(sys.executable)]
    if named := os.environ.get("RAYMERGE_PEER"):
        candidates.append(Path(named).with_name("python"))
    found = (python for python in candidates if python.with_name("mergekit-yaml").exists())
    return next(found, None)
