"""Arguments and flags that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from raymerge.units import parse_bytes


class Seconds(click.ParamType[float]):
    """A time such as 120s or 5m."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the time."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", value.strip())
        if not found:
            self.fail(f"{value!r} is no time; write 120s, 5m or 1h", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


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


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Options as `name=value`, by name."""
    pairs = {}
    for value in values:
        name, equals, setting = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is no name=value")
        pairs[name] = setting
    return pairs


BYTES = Bytes()
SECONDS = Seconds()
# Paths or URLs, and so plain text: pathlib would take the second slash of `s3://` away.
RECIPE = click.argument("recipe")
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


def storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say how buckets and the Hub are reached."""
    options = [
        click.option(
            "--storage-option",
            "storage_options",
            multiple=True,
            callback=_pairs,
            metavar="NAME=VALUE",
            help="Of an object store, such as region=eu-west-1; secrets go into the environment.",
        ),
        click.option(
            "--cache/--no-cache",
            default=True,
            show_default=True,
            help="Read files of the Hub through its cache on this node, or by range.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say where a merge runs and what it may use."""
    return ENGINE(ADDRESS(use_options(cluster_options(command))))


def watch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say where a run's account of itself goes."""
    events = click.option(
        "--events", metavar="FILE.jsonl", help="Append what happens, a line of JSON each."
    )
    trace = click.option(
        "--trace", metavar="FILE.json", help="Write a trace of the run, for ui.perfetto.dev."
    )
    return events(trace(command))


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say which workers of a Ray cluster are wanted."""
    options = [
        click.option(
            "--wait",
            "wait_s",
            type=SECONDS,
            default="120s",
            show_default=True,
            help="For a worker of the Ray cluster, while there is none.",
        ),
        click.option(
            "--gpus-per-worker",
            type=click.FloatRange(0, 1, min_open=True),
            default=1.0,
            show_default=True,
            help="Of one GPU: 0.5 puts two Ray workers on each.",
        ),
        click.option(
            "--cpu-workers",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Ray workers on CPUs beside those on GPUs.",
        ),
        click.option(
            "--node-label",
            "node_labels",
            multiple=True,
            callback=_pairs,
            metavar="NAME=VALUE",
            help="Of Ray nodes to use, such as ray.io/accelerator-type=H100.",
        ),
        click.option("--placement-group", metavar="NAME", help="Of Ray, to stay inside."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def use_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say what a merge may use, wherever it runs."""
    options: list[Callable[..., Any]] = [
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
        click.option(
            "--stats",
            is_flag=True,
            help="Norms and cosines for the ledger; most methods take a pass more for them.",
        ),
        storage_options,
    ]
    for option in reversed(options):
        command = option(command)
    return command
