"""Hand a merge to a Ray cluster from outside it: the recipe travels, and nothing else.

    laptop --recipe, command line--> job server of the head --> raymerge merge --engine ray
       ^                                                            |
       +---------------- lines of the driver, its exit code --------+

The driver runs on the cluster, so the laptop can go away. Whoever may see the job sees its command
line, so no credential goes into it.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from raymerge.errors import ClusterError, PlanError
from raymerge.recipe import Recipe, SourceRef
from raymerge.runtime.record import raymerge_version

if TYPE_CHECKING:
    from raymerge.runtime.job_server import Job


def submit(
    recipe: Recipe,
    out: str,
    *,
    address: str,
    flags: Sequence[str] = (),
    submission_id: str | None = None,
    working_dir: Path | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Job:
    """Start a merge on a cluster.

    Args:
        recipe: Its text is what travels.
        out: Destination, as the cluster's nodes call it.
        address: URL of the job server, http://HEAD:8265.
        flags: For `raymerge merge` there.
        submission_id: What the cluster calls the job; None leaves it to the cluster.
        working_dir: A folder that travels with the recipe, which has to lie in it.
        runtime_env: Ray's, without `working_dir`.

    Raises:
        PlanError: A name means nothing to the cluster, or shows a secret to everyone.
        ClusterError: The job server cannot be reached, or refuses the job.
    """
    server = check_address(address)
    check_out(out)
    for ref in recipe.read:
        _check_source(recipe, ref, working_dir)
    if find_spec("aiohttp") is None:
        raise ClusterError(
            "submitting needs Ray's job client: pip install 'raymerge[cluster]', or 'ray[default]'"
        )
    from raymerge.runtime.job_server import start_job

    with _shipped(recipe, working_dir) as (folder, name):
        command = ["raymerge", "merge", name, out, "--engine", "ray", "--address", "auto"]
        return start_job(
            server,
            shlex.join([*command, "--expect-version", raymerge_version(), *flags]),
            submission_id=submission_id,
            runtime_env={**(runtime_env or {}), "working_dir": str(folder)},
        )


def check_version(expected: str | None) -> None:
    """Raise ClusterError if this is another raymerge than the one that submitted the merge."""
    if expected not in {here := raymerge_version(), None}:
        raise ClusterError(
            f"this is raymerge {here}, and the merge was submitted for {expected}; install the "
            "same on the cluster's nodes and where it is submitted"
        )


def check_address(address: str) -> str:
    """The URL of a job server, without a slash at its end.

    Raises:
        ClusterError: It is the address of something else.
    """
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    advice = "give the job server's URL, http://HEAD:8265"
    if parts.scheme == "ray":
        raise ClusterError(
            f"{address} is for Ray's client, whose cluster forgets a merge when this machine goes "
            f"away; {advice}"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or address == "auto":
        raise ClusterError(f"{address} is no URL of a job server; {advice}")
    if parts.username or parts.password:
        raise ClusterError(
            f"the address of {parts.hostname} has a user in it; a token goes into RAY_AUTH_TOKEN, "
            "with RAY_AUTH_MODE=token"
        )
    return url.rstrip("/")


def check_out(out: str) -> None:
    """Raise PlanError for a destination that means nothing there, or too much to everyone."""
    if "://" not in out and not out.startswith("/"):
        raise PlanError(
            f"{out} is relative to a folder of this machine; give OUT as a URL, or as the absolute "
            "path on a file system that all nodes of the cluster mount"
        )
    parts = urlsplit(out)
    # A user alone is none: Azure's abfss://container@account.
    if parts.password or parts.query:
        raise PlanError(
            f"OUT, {parts.scheme}://{parts.hostname}{parts.path}, has a password or a query in it, "
            "which the job's command line would show; let the nodes' own role grant access"
        )


def _check_source(recipe: Recipe, ref: SourceRef, working_dir: Path | None) -> None:
    location = ref.location
    if "://" in location or location.startswith("/"):
        return
    if working_dir is not None and (working_dir / location).exists():
        return
    # What is not here may be a repository of the Hub.
    if not Path(location).exists() and location.count("/") == 1 and location[0] not in "./~":
        return
    raise PlanError(
        f"{recipe.path}:{ref.line}: {location} is relative to a folder of this machine; give a "
        "URL, or the absolute path on a file system that all nodes of the cluster mount; a small "
        "folder can be sent with --working-dir",
        source=ref.label,
    )


def read_runtime_env(path: Path) -> dict[str, Any]:
    """A runtime environment of Ray's, from YAML.

    Raises:
        PlanError: It is not a mapping, or says what only the command line may.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"--runtime-env {path}: cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise PlanError(f"--runtime-env {path}: not a mapping of Ray's keys, such as env_vars")
    if "working_dir" in found:
        raise PlanError(f"--runtime-env {path}: has working_dir; give it as --working-dir")
    return found


@contextmanager
def _shipped(recipe: Recipe, working_dir: Path | None) -> Iterator[tuple[Path, str]]:
    """A folder to send, and the recipe's path in it."""
    if working_dir is None:
        with tempfile.TemporaryDirectory(prefix="raymerge-") as folder:
            name = Path(recipe.path).name
            Path(folder, name).write_text(recipe.text, encoding="utf-8")
            yield Path(folder), name
        return
    path = Path(recipe.path).resolve()
    if not path.is_relative_to(working_dir.resolve()):
        raise PlanError(f"--working-dir {working_dir}: the recipe, {path}, has to lie in it")
    yield working_dir, str(path.relative_to(working_dir.resolve()))
