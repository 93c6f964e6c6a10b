"""`raymerge submit`: a merge on a cluster that this machine is no node of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from raymerge.cli.endings import TerminatedError, reported
from raymerge.cli.options import JSON, OVERWRITE, QUIET, RECIPE, cluster_options, use_options
from raymerge.errors import ClusterError

if TYPE_CHECKING:
    from raymerge.runtime.job_server import Job

OWN = {"server", "no_wait", "stop_on_interrupt", "submission_id", "working_dir", "runtime_env"}
"""What is not for `raymerge merge` on the cluster."""


@click.command()
@RECIPE
@click.argument("out")
@JSON
@OVERWRITE
@QUIET
@use_options
@cluster_options
@click.option(
    "--address",
    "server",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    help="Job server of the cluster's head.",
)
@click.option("--no-wait", is_flag=True, help="Print the job's id and leave it to the cluster.")
@click.option("--stop-on-interrupt", is_flag=True, help="Let Ctrl-C stop the job, too.")
@click.option("--submission-id", metavar="ID", help="What the cluster calls the job.")
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Send this small folder, with the recipe in it, in place of the recipe alone.",
)
@click.option(
    "--runtime-env", type=click.Path(path_type=Path), help="Ray's runtime environment, as YAML."
)
@click.pass_context
def submit(
    context: click.Context,
    /,
    recipe: str,
    out: str,
    *,
    as_json: bool,
    no_wait: bool,
    stop_on_interrupt: bool,
    runtime_env: Path | None,
    **options: Any,
) -> None:
    """Run a merge on a Ray cluster from outside it, and follow it. Takes merge's flags."""
    with reported(as_json=as_json):
        import raymerge
        from raymerge.options import StorageOptions, checked_access
        from raymerge.runtime.submit import read_runtime_env
        from raymerge.runtime.submit import submit as start

        storage = StorageOptions(storage_options=options["storage_options"], cache=options["cache"])
        loaded = raymerge.load(recipe, **storage)
        sources = [ref.location for ref in loaded.read]
        # Before they stand in the job's command line: a secret is refused.
        checked_access(storage, sources, out)
        job = start(
            loaded,
            out,
            address=options["server"],
            flags=flags_for_merge(context),
            submission_id=options["submission_id"],
            working_dir=options["working_dir"],
            runtime_env=read_runtime_env(runtime_env) if runtime_env else {},
        )
        if no_wait:
            ids = {"submission_id": job.submission_id, "address": job.address}
            click.echo(json.dumps(ids) if as_json else job.submission_id)
            click.echo(f"follow it: {job.ray_command('logs', '--follow')}", err=True)
            return
        click.echo(f"submitted {job.submission_id} to {job.address}", err=True)
        _follow(job, as_json=as_json, stop_on_interrupt=stop_on_interrupt)


def flags_for_merge(context: click.Context) -> list[str]:
    """The flags that were given and are not about submitting."""
    flags = []
    for param in context.command.params:
        name = param.name or ""
        if not isinstance(param, click.Option) or name in OWN:
            continue
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flags += _as_given(param, context.params[name])
    return flags


def _as_given(param: click.Option, value: object) -> list[str]:
    """The words of a command line that give an option a value."""
    flag = param.opts[0]
    if isinstance(value, bool):
        return [flag if value else param.secondary_opts[0]]
    if isinstance(value, dict):
        return [f"{flag}={name}={setting}" for name, setting in value.items()]
    return [f"{flag}={'auto' if value is None else value}"]


def _follow(job: Job, *, as_json: bool, stop_on_interrupt: bool) -> None:
    """Show the driver's lines until it ends, and exit as it did."""
    document = ""

    def show(line: str) -> None:
        nonlocal document
        if as_json and _is_document(line):
            document = line
        else:
            click.echo(line, err=as_json)

    left = "stopped the job" if stop_on_interrupt else f"the job goes on: {_ways_back(job)}"
    with reported(as_json=as_json, resume=left):
        try:
            outcome = job.follow(show)
        except (KeyboardInterrupt, TerminatedError):
            if stop_on_interrupt:
                job.stop()
            raise
        if document:
            click.echo(document)
        elif outcome.exit_code and as_json:
            error = ClusterError(f"job {job.submission_id}: {outcome.message}").as_json()
            click.echo(json.dumps({"error": error}))
        if outcome.exit_code:
            click.echo(f"job {job.submission_id}: {outcome.message}", err=True)
            sys.exit(outcome.exit_code)


def _ways_back(job: Job) -> str:
    return (
        f"`{job.ray_command('logs', '--follow')}` follows it, `{job.ray_command('stop')}` ends it"
    )


def _is_document(line: str) -> bool:
    """Whether this is the one line that `merge --json` prints on stdout."""
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
