"""Arguments and flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raymerge.units import parse_bytes


class Bytes(click.ParamType[int | None]):
    """A size such as 8GiB."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Read the size; `auto` stands for None."""
        if isinstance(value, int):
            return value
        if value == "auto":
            return None
        try:
            size = parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size <= 0:
            self.fail(f"{value!r} is no size; give more than 0 bytes", param, ctx)
        return size


BYTES = Bytes()
RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace whatever OUT holds.")
SHARD_SIZE = click.option(
    "--shard-size",
    "shard_bytes",
    type=BYTES,
    default="auto",
    show_default=True,
    help="Limit of an output shard, such as 5GB.",
)


ENGINE = click.option(
    "--engine",
    type=click.Choice(["auto", "local", "ray"]),
    default="auto",
    show_default=True,
    help="Ray where there is an address or more than one GPU, else threads here.",
)
ADDRESS = click.option(
    "--address", help="Ray cluster to run on; else RAY_ADDRESS, else a local one."
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say where a merge runs and what it may use."""
    return ENGINE(ADDRESS(use_options(command)))


def use_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say what a merge may use, wherever it runs."""
    options = [
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Threads of the local engine, worker processes of Ray.  [default: all CPUs]",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="What merges.",
        ),
        SHARD_SIZE,
        click.option(
            "--memory",
            "memory_bytes",
            type=BYTES,
            help="Budget of one worker process.  [default: 60% of what there is]",
        ),
        click.option(
            "--device-memory", "device_memory_bytes", type=BYTES, help="Budget of one CUDA device."
        ),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="In place of the recipe's."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
