"""S3, by SeaweedFS: signatures, ranges, conditional writes and multipart uploads are all real."""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.servers.process import GRPC_OFFSET, LOOPBACK, Server, answers, start
from tests.servers.sigv4 import Identity, Reply, request

_IDENTITY = Identity("raymerge-test", "not-a-secret-but-looks-like-one", "us-east-1")
_PARTS = ("master", "volume", "filer", "s3", "admin")
_BUCKET = "models"
# Where its collector begins to work harder. At 256 MiB it does little else: with 3 GB of data, puts
# fell to a third, and gets to a quarter.
_MEMORY_LIMIT = "1GiB"


@dataclass(frozen=True, slots=True)
class S3:
    """A place in a bucket, and what a client needs to reach it."""

    endpoint: str
    bucket: str
    prefix: str
    """Ends in a slash, unless it is empty. Each test has its own."""
    access_key: str
    secret_key: str
    region: str
    process_group: int
    """Of the server."""

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that S3 clients know."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def url(self, path: str = "") -> str:
        """`s3://` of a path here."""
        return f"s3://{self.bucket}/{self.prefix}{path}"

    def at(self, endpoint: str) -> S3:
        """The same place by another address: a proxy's."""
        return replace(self, endpoint=endpoint)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """One signed request about the object at `path` here."""
        where = f"{self.bucket}/{self.prefix}{path}"
        return self._ask(method, where, query=query, headers=headers, body=body)

    def make_bucket(self, bucket: str) -> bool:
        """Make a bucket; returns whether it is there now."""
        return self._ask("PUT", bucket).status in {200, 409}

    def uploads(self) -> Reply:
        """The bucket's multipart uploads under way, as S3 lists them."""
        return self._ask("GET", self.bucket, query={"uploads": "", "prefix": self.prefix})

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        who = Identity(self.access_key, self.secret_key, self.region)
        return request(who, method, self.endpoint, path, query=query, headers=headers, body=body)


def find_weed() -> str | None:
    """The program, beside this Python or on the PATH."""
    return shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")


@contextmanager
def seaweed(weed: str, parent: Path | None = None) -> Iterator[S3]:
    """A server with one empty bucket; `parent` is where it keeps its data."""

    def launch(folder: Path, ports: Sequence[int]) -> Server:
        return _launch(weed, folder, ports)

    def ready(ports: Sequence[int]) -> bool:
        return answers(ports[3], "/healthz") and _place(ports, 0).make_bucket(_BUCKET)

    server, ports = start("seaweed", launch, ready, num_ports=len(_PARTS), parent=parent)
    with server:
        yield _place(ports, server.pid)


def _place(ports: Sequence[int], process_group: int) -> S3:
    who = _IDENTITY
    address = f"http://{LOOPBACK}:{ports[_PARTS.index('s3')]}"
    return S3(address, _BUCKET, "", who.access_key, who.secret_key, who.region, process_group)


def _launch(weed: str, folder: Path, ports: Sequence[int]) -> Server:
    keys = [{"accessKey": _IDENTITY.access_key, "secretKey": _IDENTITY.secret_key}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identities = [{"name": "test", "credentials": keys, "actions": actions}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    named = [f"-{part}.port={port}" for part, port in zip(_PARTS, ports, strict=True)]
    sockets = [f"-{part}.localSocket={folder}/{part}" for part in ("filer", "s3")]
    off = ["-master.telemetry=false", "-webdav=false", "-admin.ui=false"]
    off += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    address = [f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", *named, *sockets]
    data = [f"-dir={folder}", f"-s3.config={folder}/s3.json"]
    grpc = zip(_PARTS, (port + GRPC_OFFSET for port in ports), strict=True)
    return Server(
        "seaweed",
        [weed, "mini", *data, *address, *off],
        folder,
        litter=[Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in grpc],
        environment={"GOMEMLIMIT": _MEMORY_LIMIT},
    )
