"""Each file in `cluster/` against the schema, parser or linter of whoever reads it. Offline."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.commands import CLUSTER, command_lines, documents, parse, shell_blocks

LAUNCHERS = sorted(CLUSTER.glob("*.yaml"))
MANIFESTS = sorted(CLUSTER.glob("kuberay/*.yaml"))
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
EACH_LAUNCHER = pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
EACH_SCRIPT = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts"))
    assert found, f"{name} is a development dependency"
    return found


def test_nothing_in_the_folder_goes_unread() -> None:
    rest = {"Dockerfile", "README.md", "compile_kernels.py", "kuberay"}
    names = {path.name for path in CLUSTER.iterdir() if not path.name.startswith("_")}
    assert names == rest | {path.name for path in [*LAUNCHERS, *SCRIPTS]}
    assert {path.stem for path in LAUNCHERS} == {"aws", "azure", "gcp"}
    assert {path.name for path in CLUSTER.glob("kuberay/*")} == {path.name for path in MANIFESTS}


# --- machines of a cloud -------------------------------------------------------------------------


@EACH_LAUNCHER
def test_a_launcher_file_is_what_ray_takes(path: Path) -> None:
    (config,) = documents(path)
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))
    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    # No key of the file is lost on the way, or in place of a default of another name.
    assert config.keys() <= filled.keys()
    assert set(filled["available_node_types"]) == {"head", "worker"}


@EACH_LAUNCHER
def test_a_launcher_file_asks_for_spot_workers_a_lasting_head_and_a_token(path: Path) -> None:
    (config,) = documents(path)
    types = config["available_node_types"]
    assert is_spot(types["worker"]["node_config"])
    assert not is_spot(types["head"]["node_config"])
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["worker"]["resources"]["GPU"] >= 1
    assert config["idle_timeout_minutes"] <= 10
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    (start,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in start
    assert f"spot-notice.sh {config['provider']['type']}" in config["worker_start_ray_commands"][-1]


def is_spot(node_config: dict[str, Any]) -> bool:
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    scheduling = node_config.get("scheduling", [{}])[0]
    arm = node_config.get("azure_arm_parameters", {})
    return market == "spot" or bool(scheduling.get("preemptible")) or arm.get("priority") == "Spot"


@EACH_LAUNCHER
def test_commands_of_a_launcher_file_parse(path: Path) -> None:
    (config,) = documents(path)
    lines = [line for key, value in config.items() if key.endswith("commands") for line in value]
    script = "\n".join(lines)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    found = list(command_lines(script))
    assert [words[:2] for words in found] == [["ray", "stop"], ["ray", "start"]] * 2
    for words in found:
        parse(words)


def test_launcher_files_differ_where_clouds_do() -> None:
    """What installs raymerge and starts Ray is the same: the version that is checked out."""
    shared = ["setup_commands", "head_start_ray_commands", "file_mounts", "rsync_exclude"]
    configs = [documents(path)[0] for path in LAUNCHERS]
    for key in shared:
        assert all(config[key] == configs[0][key] for config in configs), key
    (install,) = (line for line in configs[0]["setup_commands"] if "pip install" in line)
    mounted = {remote for remote, local in configs[0]["file_mounts"].items() if local == "."}
    assert mounted == {"/home/ubuntu/raymerge"}
    assert '"$HOME/raymerge[cluster]"' in install


# --- scripts, the image --------------------------------------------------------------------------


@EACH_SCRIPT
def test_a_script_passes_shellcheck_and_bash(path: Path) -> None:
    subprocess.run([tool("shellcheck"), path], check=True)
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)


@EACH_SCRIPT
def test_ray_and_raymerge_read_the_commands_of_a_script(path: Path) -> None:
    found = list(command_lines(path.read_text()))
    assert found
    for words in found:
        parse(words)


def test_the_slurm_script_runs_a_merge_on_every_node() -> None:
    found = [words[:2] for words in command_lines((CLUSTER / "slurm.sh").read_text())]
    assert found == [["ray", "get-auth-token"], ["ray", "symmetric-run"], ["raymerge", "merge"]]


def test_a_command_that_is_misspelt_is_refused() -> None:
    for line in ("ray start --heads", "raymerge merge a b --device gpu", "ray jobs list"):
        (words,) = command_lines(line)
        with pytest.raises(click.ClickException):
            parse(words)


def test_the_image_passes_hadolint() -> None:
    subprocess.run(
        [tool("hadolint"), "--failure-threshold", "info", CLUSTER / "Dockerfile"], check=True
    )


NOTICES = {
    "aws": ("/latest/meta-data/spot/instance-action", '{"action": "terminate"}', "120"),
    "gcp": ("/computeMetadata/v1/instance/preempted", "TRUE", "30"),
    "azure": ("/metadata/scheduledevents", '{"Events": [{"EventType": "Preempt"}]}', "30"),
}
QUIET = {"gcp": "FALSE", "azure": '{"Events": []}'}
"""What is answered before; of AWS nothing is there."""


@contextmanager
def metadata_of(cloud: str, asked: list[str]) -> Iterator[str]:
    """A cloud's metadata server, whose third answer is the notice."""
    path, notice, _ = NOTICES[cloud]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.partition("?")[0])
            body = notice if asked.count(path) > 2 else QUIET.get(cloud)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def do_PUT(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"token")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("cloud", NOTICES)
def test_a_spot_notice_drains_the_node(cloud: str, tmp_path: Path) -> None:
    noted = tmp_path / "words"
    ray_command = tmp_path / "ray"
    ray_command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {noted}\n')
    ray_command.chmod(0o755)
    asked: list[str] = []
    with metadata_of(cloud, asked) as url:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "METADATA_URL": url}
        script = [str(CLUSTER / "spot-notice.sh"), cloud]
        subprocess.run(script, env={**environment, "POLL_S": "0.1"}, check=True, timeout=30)
    path, _, left_s = NOTICES[cloud]
    assert asked.count(path) == 3
    words = noted.read_text().splitlines()
    assert words[0] == "drain-node"
    assert words[-2:] == ["--deadline-remaining-seconds", left_s]
    parse(["ray", *words])


def test_the_kernels_that_an_image_compiles_are_those_of_its_merges(tmp_path: Path) -> None:
    """A second run finds all of them, for the processor that the image names."""
    text = (CLUSTER / "Dockerfile").read_text()
    given = dict(
        line.split(maxsplit=1)[1].split("=", 1)
        for line in text.splitlines()
        if line.startswith("ARG CPU")
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NUMBA_CPU_NAME": given["CPU_NAME"],
        "NUMBA_CPU_FEATURES": given["CPU_FEATURES"],
    }
    kernels = []
    for _ in range(2):
        program = [sys.executable, str(CLUSTER / "compile_kernels.py")]
        subprocess.run(program, env=environment, check=True)
        kernels.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")})
    assert len(kernels[0]) > 20
    assert kernels[0] == kernels[1]


# --- the page ------------------------------------------------------------------------------------


def test_the_commands_of_the_page_parse() -> None:
    script = shell_blocks((CLUSTER / "README.md").read_text())
    found = list(command_lines(script))
    # Each that stands at the start of a line, and the one inside another command.
    assert len(found) == len(re.findall(r"^(?:ray|raymerge) ", script, re.MULTILINE)) + 1
    assert ["raymerge", "submit"] in [words[:2] for words in found]
    for words in found:
        parse(words)


def test_the_page_names_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    for path in [*LAUNCHERS, *MANIFESTS, *SCRIPTS, CLUSTER / "Dockerfile"]:
        assert path.name in page, path
