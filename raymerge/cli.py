"""The command line. A command parses, calls one function of the API and prints what came back.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 the run failed; 2 usage,
recipe, plan or claim is wrong and nothing was written; 3 a source or destination could not be
reached or read; 5 `verify` found a mismatch; 130 interrupted and 143 terminated, both resumable.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raymerge.endings import reported
from raymerge.units import parse_bytes

MISMATCH = 5


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
# Paths or URLs, and so plain text: pathlib would take the second slash of `s3://` away.
RECIPE = click.argument("recipe")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace whatever OUT holds.")
SHARD_SIZE = click.option(
    "--shard-size",
    "shard_bytes",
    type=BYTES,
    default="auto",
    show_default=True,
    help="Limit of an output shard, such as 5GB.",
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
    """The flags that say what a merge may use."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--engine",
            type=click.Choice(["auto", "local", "ray"]),
            default="auto",
            show_default=True,
            help="Ray where there is an address or more than one GPU, else threads here.",
        ),
        click.option(
            "--address", help="Ray cluster to run on; else RAY_ADDRESS, else a local one."
        ),
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
        storage_options,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raymerge", prog_name="raymerge")
def main() -> None:
    """Merge model checkpoints in weight space: planned first, whole or absent."""


@main.command()
@RECIPE
@JSON
@click.option("--graph", "tensor", metavar="TENSOR", help="Print the graph of one tensor.")
@run_options
def plan(recipe: str, *, as_json: bool, tensor: str | None, **options: Any) -> None:
    """Show what a merge would read, hold and write. Starts nothing."""
    with reported(as_json=as_json):
        import raymerge
        from raymerge.plan.document import as_json as document
        from raymerge.plan.explain import explain
        from raymerge.plan.explain_tensor import explain_tensor

        # A plan has millions of objects and all of them stay: the collector need not walk them.
        gc.disable()
        planned = raymerge.plan(recipe, **options)
        if as_json:
            click.echo(json.dumps(document(planned)))
        else:
            click.echo(explain_tensor(planned, tensor) if tensor else explain(planned))


@main.command()
@RECIPE
@click.argument("out")
@JSON
@OVERWRITE
@click.option("--quiet", is_flag=True, help="Show no progress.")
@run_options
def merge(recipe: str, out: str, *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Run a merge into OUT. Run it again to finish one that was killed."""
    with reported(as_json=as_json, resume=f"run the same command again to finish {out}"):
        import raymerge
        from raymerge.progress import Display
        from raymerge.report import merge_text, start_lines

        # numba looks for BLAS in scipy: a quarter of a second of imports that no kernel here uses.
        sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]
        # A plan has millions of objects and all of them stay: the collector need not walk them.
        gc.disable()
        display = Display()

        def on_plan(planned: Any, machine: Any) -> None:
            display.begin(planned)
            gc.freeze()
            # numba makes as many as it starts: seldom enough not to be noticed, still bounded.
            gc.set_threshold(100_000)
            gc.enable()
            if not quiet:
                for line in start_lines(planned, machine):
                    click.echo(line, err=True)

        call = {"on_plan": on_plan, "on_progress": display.add, **options}
        if quiet:
            result = raymerge.merge(recipe, out, **call)
        else:
            with display.shown():
                result = raymerge.merge(recipe, out, **call)
        click.echo(json.dumps(result.as_json()) if as_json else merge_text(result))


@main.command()
@click.argument("checkpoint")
@JSON
@storage_options
def verify(checkpoint: str, *, as_json: bool, **options: Any) -> None:
    """Check a checkpoint against itself. Works on anyone's."""
    with reported(as_json=as_json):
        from dataclasses import asdict

        import raymerge
        from raymerge.report import verification_text

        found = raymerge.verify(checkpoint, **options)
        document = {**asdict(found), "ok": found.ok}
        click.echo(json.dumps(document) if as_json else verification_text(found))
        if not found.ok:
            sys.exit(MISMATCH)


@main.command()
@click.argument("source")
@click.argument("out")
@JSON
@SHARD_SIZE
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Round to it.")
@OVERWRITE
def convert(source: str, out: str, *, as_json: bool, **options: Any) -> None:
    """Write SOURCE, pickled or safetensors, as sharded safetensors. Runs no code in it."""
    with reported(as_json=as_json, resume=f"run the same command again to make {out}"):
        import raymerge
        from raymerge.report import conversion_text

        result = raymerge.convert(source, out, **options)
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(json.dumps(result.as_json()) if as_json else conversion_text(result))


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--base", help="What they were trained from.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: a .png or .svg file.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads.  [default: all CPUs]")
@JSON
@storage_options
def inspect(
    sources: tuple[str, ...], *, base: str | None, plot: Path | None, as_json: bool, **options: Any
) -> None:
    """Compare SOURCES, by layer: does a merge make sense? Writes no model."""
    with reported(as_json=as_json):
        import raymerge
        from raymerge.plot import check_plot, draw
        from raymerge.report import inspection_text

        if plot:
            check_plot(plot)
        found = raymerge.inspect(*sources, base=base, **options)
        if plot:
            draw(found, plot)
        click.echo(json.dumps(found.as_json()) if as_json else inspection_text(found))


@main.command()
@click.argument("name", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for editors.")
@JSON
def methods(name: str | None, *, schema: bool, as_json: bool) -> None:
    """List every method with its knobs, or describe one."""
    with reported(as_json=as_json):
        from raymerge.listing import describe, listing, listing_json

        if schema:
            from raymerge.recipe.schema import json_schema

            click.echo(json.dumps(json_schema(), indent=2))
        elif as_json:
            click.echo(json.dumps(listing_json(name), indent=2))
        else:
            click.echo(describe(name) if name else listing())


if __name__ == "__main__":
    main()
