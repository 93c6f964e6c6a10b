"""No secret leaves: planted in the environment, then looked for in all that is written or said.

Every variable that a client of S3, Google's store, Azure or the Hub takes a secret from holds one
that is found nowhere else. Commands run in processes of their own, on both engines, from S3 to S3
and into errors; what they print, every object and file they leave, Ray's logs and what Ray is given
are searched for any of them.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from pyarrow import parquet

import raymerge
from raymerge.errors import RaymergeError
from raymerge.runtime.ledger import LEDGER_NAMES
from raymerge.runtime.settings import Progress, run_settings
from raymerge.storage import open_folder
from raymerge.storage.objects import ObjectFolder, ObjectStore
from raymerge.storage.patience import Patience
from raymerge.storage.store import Access
from raymerge.storage.urls import destination
from tests.conftest import Done, Place, finish, spawn
from tests.servers.hub_state import Hub
from tests.servers.seaweed import S3

VARIABLES = (
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_FABRIC_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "HF_TOKEN",
    "HTTPS_PROXY",
    "HUGGING_FACE_HUB_TOKEN",
)
SHAPES = {
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey={};EndpointSuffix=x",
    "AZURE_STORAGE_SAS_KEY": "sv=2021-12-02&sig={}",
    "AZURE_STORAGE_SAS_TOKEN": "sv=2021-12-02&sig={}",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{{"client_email": "robot@project", "private_key": "{}"}}',
    "HF_TOKEN": "hf_{}",
    "HTTPS_PROXY": "http://me:{}@127.0.0.1:9",
    "HUGGING_FACE_HUB_TOKEN": "hf_{}",
}
NEEDED = "AWS_SECRET_ACCESS_KEY"
"""By which the tests' S3 is reached; another value would be refused."""
BRIEF = Patience(first_contact_s=0.2)
USED_UP = "AWS_SESSION_TOKEN"
"""Not for the tests' S3, which knows no such tokens."""


def secret_of(variable: str) -> str:
    """At least as long as real ones, of letters and digits, as most are."""
    return f"Planted{variable.title().replace('_', '')}0123456789abcdefghij"


class Planted:
    """What is looked for, by the variable that holds it."""

    def __init__(self, s3: S3) -> None:
        self.secrets = {name: secret_of(name) for name in VARIABLES} | {NEEDED: s3.secret_key}

    def environment(self) -> dict[str, str]:
        """All variables, with which S3 is still reached."""
        shaped = {n: SHAPES.get(n, "{}").format(s) for n, s in self.secrets.items()}
        return {name: text for name, text in shaped.items() if name != USED_UP}

    def assert_absent(self, content: str | bytes, where: object) -> None:
        """No secret is there, as it is or written in another way."""
        raw = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        for name, secret in self.secrets.items():
            plain = secret.encode()
            for form in (plain, base64.b64encode(plain).rstrip(b"="), quote(secret).encode()):
                assert form not in raw, f"{name} is in {where}"


@pytest.fixture
def planted(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Planted:
    found = Planted(s3)
    for name, text in found.environment().items():
        monkeypatch.setenv(name, text)
    # Nothing listens there.
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9/account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    return found


@pytest.fixture
def recipe(place: Place, s3: S3) -> Path:
    """A merge of models in S3."""
    place.llamas()
    path = place.any_recipe("ties")
    for name in ("base", "a", "b"):
        for file in (place / name).iterdir():
            s3.request("PUT", f"{name}/{file.name}", file.read_bytes())
        path.write_text(path.read_text().replace(str(place / name) + "\n", s3.url(name) + "\n"))
    assert path.read_text().count("s3://") == 3
    return path


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its logs. Short: sockets lie there too."""
    folder = tempfile.mkdtemp(prefix="rm")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run(planted: Planted, *arguments: object, **environment: str) -> Done:
    """A command in a process of its own, whose words are searched."""
    return ended(planted, spawn(*arguments, **environment))


def ended(planted: Planted, process: subprocess.Popen[str]) -> Done:
    """What a process left behind, whose words are searched."""
    done = finish(process, 200)
    planted.assert_absent(done.out, f"stdout of {process.args!r}")
    planted.assert_absent(done.err, f"stderr of {process.args!r}")
    return done


def assert_objects_clean(planted: Planted, url: str, expected: str) -> None:
    """Every object below a place, and the ledger's tables, whose pages are packed."""
    store = ObjectStore(destination(url), Access())
    names = store.pins()
    assert expected in names
    for name in names:
        found = store.read(name)
        assert found is not None
        planted.assert_absent(found[0], f"{url}/{name}")
        if name in LEDGER_NAMES.values():
            rows = parquet.read_table(BytesIO(found[0])).to_pylist()
            planted.assert_absent(repr(rows), f"rows of {url}/{name}")


def watched(place: Place) -> tuple[str | Path, ...]:
    """Flags by which a command leaves an account of what it does."""
    return "--events", place / "events.jsonl", "--trace", place / "trace.json"


def assert_account_clean(planted: Planted, place: Place, *kinds: str) -> None:
    """What `watched` asked for is there, tells of some kinds of events, and holds no secret."""
    events = (place / "events.jsonl").read_text()
    told = {json.loads(line)["event"] for line in events.splitlines()}
    assert told >= {"run_started", *kinds, "run_ended"}
    assert json.loads((place / "trace.json").read_text())["traceEvents"]
    for name in ("events.jsonl", "trace.json"):
        planted.assert_absent((place / name).read_bytes(), name)


def test_a_plan_and_a_merge_on_threads_hold_none(
    planted: Planted, recipe: Path, s3: S3, place: Place
) -> None:
    options = ("--json", "--stats", "--engine", "local", "--device", "cpu", "--shard-size", 8000)
    assert run(planted, "plan", recipe, *options).rc == 0
    assert run(planted, "merge", recipe, s3.url("out"), *options, *watched(place)).rc == 0
    assert_account_clean(planted, place, "unit_ended", "published")
    assert run(planted, "verify", s3.url("out")).rc == 0
    assert_objects_clean(planted, s3.url("out"), "raymerge.json")


@pytest.mark.ray
def test_a_merge_on_ray_holds_none(
    planted: Planted, recipe: Path, s3: S3, ray_folder: Path, place: Place
) -> None:
    options = ("--json", "--engine", "ray", "--device", "cpu", "--workers", 2, "--memory", "1GiB")
    done = run(
        planted,
        "merge",
        recipe,
        s3.url("out"),
        *options,
        *watched(place),
        RAY_TMPDIR=str(ray_folder),
    )

    assert done.rc == 0, done.err
    assert done.json["engine"] == "ray"
    assert_account_clean(planted, place, "worker_joined", "unit_ended", "published")
    assert_objects_clean(planted, s3.url("out"), "raymerge.json")
    logs = [path for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name.startswith("worker-") for path in logs)
    for path in logs:
        planted.assert_absent(path.read_bytes(), path)


class StoppedError(Exception):
    """A driver that dies."""


def test_what_a_stopped_merge_leaves_holds_none(planted: Planted, recipe: Path, s3: S3) -> None:
    written = 0

    def stop(progress: Progress) -> None:
        nonlocal written
        written += progress.written_bytes
        if written > 10_000:
            raise StoppedError

    with pytest.raises(StoppedError):
        raymerge.merge(
            recipe, s3.url("out"), engine="local", device="cpu", workers=1, shard_bytes=8000,
            on_progress=stop,
        )  # fmt: skip
    assert_objects_clean(planted, s3.url("out"), ".raymerge/claim.json")
    assert any(
        "/unit-" in name for name in ObjectStore(destination(s3.url("out")), Access()).pins()
    )


def test_what_ray_is_given_holds_none(planted: Planted, recipe: Path, s3: S3) -> None:
    access = Access(options={"region": s3.region, "endpoint": s3.endpoint})
    plan = raymerge.plan(recipe, engine="local", device="cpu", stats=True, out=s3.url("out"))
    settings = run_settings(plan, s3.url("out"), "cpu", access)
    folder = open_folder(s3.url("a"), label="a", access=access)
    name = max(folder.sizes())
    folder.read(name, 0, 8)
    for each in (settings, plan, folder, *plan.units):
        planted.assert_absent(pickle.dumps(each), type(each))
        planted.assert_absent(repr(each), type(each))


FAILURES = {
    "refused": {NEEDED: secret_of(NEEDED)},
    "refused token": {USED_UP: secret_of(USED_UP)},
    "unreached": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    "bad key": {
        "AWS_SSE_CUSTOMER_KEY_BASE64": secret_of(NEEDED),
        "AWS_SERVER_SIDE_ENCRYPTION": "x",
    },
}


@pytest.mark.parametrize("failure", FAILURES)
def test_errors_of_s3_hold_none(
    planted: Planted, recipe: Path, s3: S3, failure: str, place: Place
) -> None:
    planted.secrets["wrong"] = secret_of(NEEDED)
    environment = FAILURES[failure]
    # With --json an error is told twice: as a document, and as text on stderr.
    options = ("--json", *watched(place))
    merge = spawn("merge", recipe, s3.url("out"), *options, **environment)
    doctor = spawn("doctor", s3.url("a"), "--write", s3.url("out"), **environment)
    done, tried = ended(planted, merge), ended(planted, doctor)
    assert_account_clean(planted, place)

    assert (done.rc, tried.rc) == (3, 3)
    assert done.error["message"] in done.err


@pytest.mark.parametrize("url", ["gs://bucket/model", "az://container/model"])
def test_errors_of_other_stores_hold_none(
    planted: Planted, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(planted, "doctor", url, "--write", url, "--json")
    assert done.rc == 3
    assert all(place["problems"] for place in done.json["places"])
    access = Access(options={"timeout": "2s"})
    # One after another: of several secrets a client takes the first that it knows.
    for variable in VARIABLES:
        if variable.startswith(("GOOGLE_", "AZURE_")):
            monkeypatch.delenv(variable)
            with pytest.raises(RaymergeError) as caught:
                ObjectFolder(destination(url), access, patience=BRIEF).sizes()
            for text in (str(caught.value), "".join(traceback.format_exception(caught.value))):
                planted.assert_absent(text, f"{url} without {variable}")
            planted.assert_absent(pickle.dumps(caught.value), f"{url} without {variable}")


def test_errors_of_the_hub_hold_none(hub: Hub, planted: Planted) -> None:
    hub.add("org/open", {"model.safetensors": b"x"})
    # The Hub's fixture takes tokens away; it comes before the planted ones.
    assert os.environ["HF_TOKEN"] == planted.environment()["HF_TOKEN"]
    done = run(planted, "doctor", "hf://org/open", "--write", "hf://org/open", "--json")

    assert done.rc == 3
    assert all("401" in place["problems"][0] for place in done.json["places"])
    assert hub.authorized["whoami"] == 2


@pytest.mark.parametrize("name", ["secret_access_key", "aws_session_token", "sas_token"])
@pytest.mark.parametrize("command", ["plan", "merge", "verify", "inspect", "doctor"])
def test_a_secret_on_the_command_line_is_refused_and_not_said(
    place: Place, command: str, name: str
) -> None:
    needs_recipe = command in {"plan", "merge"}
    places = [str(place.any_recipe("linear"))] if needs_recipe else ["s3://bucket/m"]
    places += [str(place / "out")] if command == "merge" else []
    value = secret_of(name)
    done = place.run(command, *places, "--storage-option", f"{name}={value}", "--json")

    assert done.rc == 2
    assert "in the environment instead" in done.error["message"]
    assert value not in done.out + done.err
    assert json.dumps(done.json)
