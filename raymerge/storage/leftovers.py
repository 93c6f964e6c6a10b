"""What a killed writer leaves of an upload: parts without an object, which are paid for and unseen.

s3      stay until somebody aborts the upload or a rule of the bucket does; boto3 lists them
gs      likewise, by a rule of the bucket
az      Azure discards blocks that were never committed after a week, or at the next upload of
        that object
memory  gone with the process
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymerge.storage.clients import is_signed, s3_settings
from raymerge.storage.options import is_true
from raymerge.storage.redaction import redact
from raymerge.storage.store import Access
from raymerge.storage.urls import Location, Scheme

if TYPE_CHECKING:
    from botocore.client import BaseClient

_DAYS = 2
S3_RULE: Mapping[str, Any] = {
    "Rules": [
        {
            "ID": "abort-incomplete-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _DAYS},
        }
    ]
}
"""For `aws s3api put-bucket-lifecycle-configuration`."""
GS_RULE: Mapping[str, Any] = {
    "rule": [{"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": _DAYS}}]
}
"""For `gcloud storage buckets update --lifecycle-file`."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What was found and removed, and what the user may have to do."""

    aborted: tuple[str, ...] = ()
    """Objects whose unfinished uploads were aborted, one entry each."""
    advice: str | None = None
    """None where nothing can be left."""


def abort_leftovers(location: Location, access: Access, names: Collection[str]) -> Leftovers:
    """Abort the uploads that were begun for these very objects below a location and not finished.

    To be called by who holds the claim, before any upload of this run or after all: an upload under
    way looks just like one that was left.
    """
    if location.scheme is Scheme.S3:
        return _abort_s3(location, access, names)
    if location.scheme is Scheme.GS:
        return Leftovers(advice=_advice(location, "Google's store", GS_RULE, _GS_COMMAND))
    return Leftovers()


def find_leftovers(location: Location, access: Access) -> tuple[str, ...] | None:
    """The objects below a location that an upload was begun for and not finished.

    None where that cannot be found out: outside of S3, or without boto3 and the right to list.
    """
    if location.scheme is not Scheme.S3:
        return None
    try:
        from boto3 import Session
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    prefix = f"{location.path}/" if location.path else ""
    try:
        client = _client(Session(), location, access)
        return tuple(key.removeprefix(prefix) for key, _ in _uploads(client, location.root, prefix))
    except (BotoCoreError, ClientError, ValueError):
        return None


def removal_rule(location: Location) -> str | None:
    """How to have a store remove what killed uploads leave; None where it does so by itself."""
    known = {Scheme.S3: (S3_RULE, _S3_COMMAND), Scheme.GS: (GS_RULE, _GS_COMMAND)}
    return _remedy(location, *known[location.scheme]) if location.scheme in known else None


def _abort_s3(location: Location, access: Access, names: Collection[str]) -> Leftovers:
    advice = "raymerge[aws] is not installed, which aborts them"
    try:
        from boto3 import Session
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return Leftovers(advice=_advice(location, advice, S3_RULE, _S3_COMMAND))
    prefix = f"{location.path}/" if location.path else ""
    keys = {f"{prefix}{name}" for name in names}
    aborted = []
    try:
        client = _client(Session(), location, access)
        for key, upload in _uploads(client, location.root, prefix):
            if key in keys:
                client.abort_multipart_upload(Bucket=location.root, Key=key, UploadId=upload)
                aborted.append(key.removeprefix(prefix))
    except (BotoCoreError, ClientError, ValueError) as error:
        advice = f"they could not be listed or aborted: {redact(str(error))}"
        return Leftovers(tuple(aborted), _advice(location, advice, S3_RULE, _S3_COMMAND))
    return Leftovers(tuple(aborted))


def _client(session: Any, location: Location, access: Access) -> BaseClient:
    """Amazon's client with the settings that obstore's has, and no more patience."""
    from botocore import UNSIGNED
    from botocore.config import Config

    settings = s3_settings(location, access.options)
    virtual = is_true(settings.get("virtual_hosted_style_request", ""))
    config = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"total_max_attempts": 6, "mode": "standard"},
        s3={"addressing_style": "virtual" if virtual else "path"},
        signature_version=None if is_signed(settings) else UNSIGNED,
    )
    client: BaseClient = session.client(
        "s3",
        region_name=settings["region"],
        endpoint_url=settings.get("endpoint"),
        config=config,
    )
    return client


def _uploads(client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Key and number of every unfinished upload below a prefix."""
    pages = client.get_paginator("list_multipart_uploads")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix):
        for upload in page.get("Uploads", ()):
            yield upload["Key"], upload["UploadId"]


_S3_COMMAND = "aws s3api put-bucket-lifecycle-configuration --bucket {} --lifecycle-configuration"
_GS_COMMAND = "gcloud storage buckets update gs://{} --lifecycle-file=FILE, the file holding"


def _advice(location: Location, why: str, rule: Mapping[str, Any], command: str) -> str:
    return (
        f"A killed run may have left parts of unfinished uploads in {location}, unseen and paid "
        f"for ({why}). {_remedy(location, rule, command)}"
    )


def _remedy(location: Location, rule: Mapping[str, Any], command: str) -> str:
    return (
        f"A rule of the bucket removes them: {command.format(location.root)} "
        f"{json.dumps(rule)!r}. It replaces rules that are there."
    )
