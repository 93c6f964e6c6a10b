"""The command lines in `cluster/` and its page, and the parsers of those they are for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from ray.scripts.scripts import cli as ray_cli

from raymerge.cli import main as raymerge_cli

CLUSTER = Path(__file__).parents[2] / "cluster"
PROGRAMS: dict[str, click.Group] = {"ray": ray_cli, "raymerge": raymerge_cli}
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"\$\{?(\w+)[^}\s\"]*\}?")
NUMBERS = {"SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "left_s"}


def documents(path: Path) -> list[dict[str, Any]]:
    """What a YAML file holds."""
    return list(yaml.safe_load_all(path.read_text()))


def shell_blocks(page: str) -> str:
    """What a page shows to run."""
    return "".join(_BLOCK.findall(page))


def command_lines(script: str) -> Iterator[list[str]]:
    """The words of every `ray` and `raymerge` command in a script, variables filled in."""
    text = re.sub(r"\\\n\s*", " ", script)
    for line in text.splitlines():
        words = _words(line)
        for start, word in enumerate(words):
            begins = start == 0 or words[start - 1] in {
                ";",
                "&&",
                "||",
                "|",
                "(",
                "$(",
                "--",
                "exec",
            }
            after_srun = "srun" in words[:start] and word == "ray" and "ray" not in words[:start]
            if word in PROGRAMS and (begins or after_srun):
                yield _until_operator(words[start:])


def _words(line: str) -> list[str]:
    line = line.replace('"$(', "$(").replace(')"', ")").replace("$(", " ( ").replace('"$@"', "")
    line = _PARAMETER.sub(lambda match: "8" if match[1] in NUMBERS else "x", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();&|<>")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # a quotation over several lines: no command of ours
        return []


def _until_operator(words: list[str]) -> list[str]:
    for index, word in enumerate(words):
        if word and set(word) <= set("();&|<>"):
            return words[:index]
    return words


def parse(words: list[str]) -> None:
    """Let the program's own parser read a command line.

    Raises:
        click.ClickException: It refuses.
    """
    command: click.Command = PROGRAMS[words[0]]
    rest = words[1:]
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(click.Context(command), rest)
        assert found is not None, name
        command = found
    if command.name == "symmetric_run":
        # Its flags are those of `ray start`, and behind -- stands another command.
        split = rest.index("--")
        command.make_context("symmetric-run", [*rest[:split], "--", "true"])
        own = command.make_context("", rest[:split], resilient_parsing=True)
        flags = list(own.params["ray_args_and_entrypoint"])
        ray_cli.commands["start"].make_context("start", ["--address", "x:1", *flags])
        return
    command.make_context(command.name, rest)
