"""`raymerge simulate`: what a merge would take on a cluster that need not be there."""

from __future__ import annotations

import gc
import json
from typing import Any

import click

from raymerge.cli.endings import reported
from raymerge.cli.options import BYTES, JSON, RECIPE, SHARD_SIZE, storage_options

FAMILIES = ("copy", "span", "delta", "drawn", "free")
RATE = click.FloatRange(min=0, min_open=True)


def _rates(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, float]:
    """`40` for every family, or `delta=40`, by family."""
    found: dict[str, float] = {}
    for value in values:
        family, _, rate = value.rpartition("=")
        if family not in ("", *FAMILIES):
            raise click.BadParameter(f"{family!r} is no family: {', '.join(FAMILIES)}")
        number = RATE(rate, parameter, context)
        found |= dict.fromkeys([family] if family else FAMILIES, number)
    return found


@click.command()
@RECIPE
@JSON
@click.option("--nodes", type=click.IntRange(1), required=True, help="All alike.")
@click.option("--gpus-per-node", type=click.IntRange(0), required=True, help="0 merges on CPUs.")
@click.option(
    "--cpus-per-node",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Threads of the worker of a node without GPUs; beside GPUs, one for each and two for each "
    "of --cpu-workers.",
)
@click.option(
    "--cpu-workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Workers on CPUs beside those on GPUs, on all nodes together.",
)
@click.option(
    "--read-gbps",
    type=RATE,
    required=True,
    help="GB/s, not Gbit/s, that a node reads from storage: 12.5 for a line of 100 Gbit/s.",
)
@click.option("--write-gbps", type=RATE, required=True, help="GB/s that a node writes to storage.")
@click.option(
    "--connection-gbps",
    type=RATE,
    help="GB/s of one connection to storage; a unit reads on 8 and writes on 4.  [default: any]",
)
@click.option(
    "--merge-gbps",
    multiple=True,
    callback=_rates,
    metavar="[FAMILY=]GB/S",
    help="GB/s of inputs that a GPU, or a thread on CPUs, takes in for each sweep; FAMILY is copy, "
    "span, delta, drawn or free.  [default: measured of one core]",
)
@click.option(
    "--cpu-merge-gbps",
    multiple=True,
    callback=_rates,
    metavar="[FAMILY=]GB/S",
    help="The same of one of the two threads of each of --cpu-workers.",
)
@click.option("--price-per-hour", type=click.FloatRange(0), help="Of one node.")
@click.option(
    "--storage",
    type=click.Choice(["objects", "files"]),
    default="objects",
    show_default=True,
    help="Where sources and output are thought to lie, wherever they are.",
)
@click.option(
    "--memory",
    "memory_bytes",
    type=BYTES,
    default="64GiB",
    show_default=True,
    help="Budget of one worker process.",
)
@click.option(
    "--device-memory", "device_memory_bytes", type=BYTES, help="Budget of one CUDA device."
)
@SHARD_SIZE
@storage_options
def simulate(recipe: str, *, as_json: bool, **options: Any) -> None:
    """Foretell time, traffic, memory and cost of a merge on a cluster. Starts nothing."""
    with reported(as_json=as_json):
        import raymerge
        from raymerge.report import simulation_text

        # A plan has millions of objects and all of them stay: the collector need not walk them.
        gc.disable()
        found = raymerge.simulate(recipe, **options)
        click.echo(json.dumps(found.as_json()) if as_json else simulation_text(found))
