"""The command line. A command parses, calls one function of the API and prints what came back.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 the run failed; 2 usage,
recipe, plan or claim is wrong and nothing was published; 3 a source or destination could not be
reached or read, or `doctor` found something wrong; 4 a sweep
finished with failed trials; 5 `verify` found a mismatch; 130 interrupted and
143 terminated, both resumable.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from raymerge.cli.endings import reported
from raymerge.cli.options import (
    JSON,
    OVERWRITE,
    QUIET,
    RECIPE,
    SHARD_SIZE,
    run_options,
    storage_options,
    watch_options,
)
from raymerge.cli.simulate import simulate
from raymerge.cli.submit import submit
from raymerge.cli.sweep import reproduce, sweep

UNREACHED, MISMATCH = 3, 5


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raymerge", prog_name="raymerge")
def main() -> None:
    """Merge model checkpoints in weight space: planned first, whole or absent."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A path need not be text, and the message of a merge that is done is no place to fail.
            stream.reconfigure(errors="backslashreplace")
    # What is left at the end goes with the process: looking for cycles in it takes 0.1 s.
    atexit.register(gc.freeze)


@main.command()
@RECIPE
@JSON
@click.option("--graph", "tensor", metavar="TENSOR", help="Print the graph of one tensor.")
@run_options
def plan(recipe: str, *, as_json: bool, tensor: str | None, **options: Any) -> None:
    """Show what a merge would read, hold and write. Starts nothing."""
    if tensor is not None and as_json:
        raise click.UsageError(
            "--graph prints text, and --json a document that has every tensor's graph; give one"
        )
    if tensor == "":
        raise click.UsageError("--graph: the tensor's name is empty; write one of the plan's")
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
@QUIET
@run_options
@watch_options
@click.option("--expect-version", metavar="VERSION", help="Refuse to run as another raymerge.")
def merge(
    recipe: str,
    out: str,
    *,
    as_json: bool,
    quiet: bool,
    expect_version: str | None,
    **options: Any,
) -> None:
    """Run a merge into OUT. Run it again to finish one that was killed."""
    with reported(as_json=as_json, resume=f"run the same command again to finish {out}"):
        import raymerge
        from raymerge.progress import Display
        from raymerge.report import merge_text, start_lines
        from raymerge.runtime.submit import check_version

        check_version(expect_version)
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

        call = {"on_plan": on_plan, "on_progress": display.add, "on_event": display.hear, **options}
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
@click.argument("sources", nargs=-1, metavar="[URL]...")
@click.option("--write", multiple=True, metavar="URL", help="A destination to try.")
@JSON
@storage_options
def doctor(
    sources: tuple[str, ...], *, write: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Read 1 MB from each URL; write, read back and remove 1 MB at each --write."""
    with reported(as_json=as_json):
        import raymerge
        from raymerge.report import diagnosis_text

        found = raymerge.doctor(*sources, write=write, **options)
        click.echo(json.dumps(found.as_json()) if as_json else diagnosis_text(found))
        if not found.ok:
            sys.exit(UNREACHED)


@main.command()
@click.argument("name", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for editors.")
@JSON
def methods(name: str | None, *, schema: bool, as_json: bool) -> None:
    """List every method with its knobs, or describe one."""
    with reported(as_json=as_json):
        from raymerge.listing import describe, listing, listing_json

        if schema:
            from raymerge.sweep.schema import json_schema

            click.echo(json.dumps(json_schema(), indent=2))
        elif as_json:
            click.echo(json.dumps(listing_json(name), indent=2))
        else:
            click.echo(describe(name) if name else listing())


main.add_command(simulate)
main.add_command(submit)
main.add_command(sweep)
main.add_command(reproduce)
