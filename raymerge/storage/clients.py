"""obstore's clients, made from a location, its options and the environment of this process.

A client never travels: it holds credentials. What travels is the location and the options, and the
other process makes its own client from its own environment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Mapping
from datetime import timedelta
from enum import Enum, auto
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, ObjectStore, S3Store

from raymerge.storage.credentials import bucket_region, profile_credentials
from raymerge.storage.failures import FailedError, read_failure
from raymerge.storage.options import is_true, of_client, of_scheme
from raymerge.storage.urls import Location, Scheme

KINDS: tuple[type[Exception], ...] = (BaseError, OSError, ValueError)
"""What a request may raise: obstore's own exceptions, and the builtins it uses where they fit."""

CONNECT_S = 5
STALL_S = 20
"""A connection that brings no byte for so long is given up: the stall watchdog."""
READ_S = 120
"""For one read, at most 16 MiB, with its body."""
WRITE_S = 300
"""For one part or one small object, sent over a slow line."""


class Use(Enum):
    """What a client is for."""

    ASK = auto()
    """Reads, and objects of at most `SMALL_BYTES`: no retries of its own, and a stall watchdog."""
    SEND = auto()
    """Larger single objects. Without the watchdog: it would count the time of sending."""
    UPLOAD = auto()
    """Objects in parts, each sent again by obstore itself."""


SMALL_BYTES = 2**20

_clients: dict[Hashable, ObjectStore] = {}
_in_memory: dict[str, MemoryStore] = {}
_lock = threading.Lock()


def open_client(location: Location, options: Mapping[str, str], use: Use) -> ObjectStore:
    """A client for the bucket of a location; keys are given in full.

    There is one per bucket and process: with it go its connections, and its credentials, which
    would otherwise be fetched anew for every object that is written.

    Raises:
        FailedError: The options or the environment make no client.
    """
    environment = tuple(item for item in sorted(os.environ.items()) if item[0].startswith(_MATTERS))
    known_by = location.scheme, location.root, tuple(sorted(options.items())), use, environment
    try:
        with _lock:
            if known_by not in _clients:
                _clients[known_by] = _open(location, options, use)
            return _clients[known_by]
    except KINDS as error:
        failure = read_failure(error)
    raise FailedError(failure)


_MATTERS = ("AWS_", "AZURE_", "GOOGLE_", "HOME")
"""How the names of those variables begin that a client is made from."""


def _open(location: Location, options: Mapping[str, str], use: Use) -> ObjectStore:
    if location.scheme is Scheme.MEMORY:
        return _in_memory.setdefault(location.root, MemoryStore())
    settings: dict[str, Any] = {
        "client_options": _connection(location, options, use),
        "retry_config": _retries(use),
    }
    if location.scheme is Scheme.S3:
        config: Any = {**_payload(options), **s3_settings(location, options)}
        settings["credential_provider"] = profile_credentials() if is_signed(config) else None
        return S3Store(location.root, config=config, **settings)
    config = _settings(location.scheme, options)
    if location.scheme is Scheme.GS:
        return GCSStore(location.root, config=config, **settings)
    config = {**_azure_environment(), **config}
    if "@" in location.root:
        return AzureStore.from_url(f"abfss://{location.root}", config=config, **settings)
    return AzureStore(location.root, config=config, **settings)


def s3_settings(location: Location, options: Mapping[str, str]) -> dict[str, str]:
    """Options of a client for S3, with the endpoint and the region that it is to sign for."""
    settings = _settings(location.scheme, options)
    if "region" not in settings:
        settings["region"] = _s3_region(location.root, settings)
    return settings


def _payload(options: Mapping[str, str]) -> dict[str, str]:
    """Whether what is sent to S3 is hashed for the signature, beside the hash of TLS.

    As Amazon's own clients do it: where TLS guards the bytes on their way it is not, for it would
    take a processor longer than all else that uploading does.
    """
    said = "AWS_UNSIGNED_PAYLOAD" in os.environ or _is_plain(Scheme.S3, options)
    return {} if said else {"unsigned_payload": "true"}


def is_signed(settings: Mapping[str, str]) -> bool:
    """Whether requests to S3 are signed at all."""
    skipped = settings.get("skip_signature", os.environ.get("AWS_SKIP_SIGNATURE", ""))
    return not is_true(skipped)


def _settings(scheme: Scheme, options: Mapping[str, str]) -> dict[str, str]:
    # obstore reads some of the endpoints' variables itself, but not those of every store.
    return {**of_scheme(options, scheme), **_endpoint(scheme, options)}


def _s3_region(bucket: str, settings: Mapping[str, str]) -> str:
    """The region, of the environment or the profile, or asked of Amazon where it is the server."""
    given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if given:
        return given
    provider = profile_credentials() if is_signed(settings) else None
    if provider is not None and "region" in provider.config:
        return str(provider.config["region"])
    return ("endpoint" not in settings and bucket_region(bucket)) or _NO_REGION


_NO_REGION = "us-east-1"
"""What servers that know no regions accept, and Amazon where the bucket lies there."""

_ENDPOINTS = {
    Scheme.S3: ("endpoint", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")),
    Scheme.GS: ("base_url", ("GOOGLE_BASE_URL",)),
    Scheme.AZ: ("endpoint", ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")),
}


def _endpoint(scheme: Scheme, options: Mapping[str, str]) -> dict[str, str]:
    """The server that stands in for the cloud's own, as an option of obstore."""
    azure = scheme in {Scheme.ABFS, Scheme.ABFSS}
    option, variables = _ENDPOINTS[Scheme.AZ if azure else scheme]
    named = options.get(option), *(os.environ.get(variable) for variable in variables)
    url = next((url for url in named if url), None)
    return {option: url} if url else {}


def server_of(scheme: Scheme, options: Mapping[str, str]) -> str | None:
    """The server that stands in for the cloud's own; None where none does."""
    return next(iter(_endpoint(scheme, options).values()), None)


def _is_plain(scheme: Scheme, options: Mapping[str, str]) -> bool:
    """Whether the server is spoken to without TLS."""
    return (server_of(scheme, options) or "").lower().startswith("http://")


def _connection(location: Location, options: Mapping[str, str], use: Use) -> dict[str, Any]:
    plain = _is_plain(location.scheme, options)
    allowed = plain or is_true(os.environ.get("AWS_ALLOW_HTTP", ""))
    settings: dict[str, Any] = {
        "allow_http": allowed,
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=STALL_S),
        "timeout": timedelta(seconds=READ_S if use is Use.ASK else WRITE_S),
        **of_client(options),
    }
    if use is not Use.ASK:
        # It would run while a part is being sent, when there is nothing to read.
        del settings["read_timeout"]
    return settings


def _retries(use: Use) -> dict[str, Any]:
    if use is Use.UPLOAD:
        return {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
    return {"max_retries": 0, "retry_timeout": timedelta(seconds=READ_S)}


def _azure_environment() -> dict[str, str]:
    """What Azure's command line calls otherwise than obstore does."""
    names = {"account_name": "AZURE_STORAGE_ACCOUNT", "account_key": "AZURE_STORAGE_KEY"}
    known = {
        "account_name": "AZURE_STORAGE_ACCOUNT_NAME",
        "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    }
    return {
        option: os.environ[variable]
        for option, variable in names.items()
        if variable in os.environ and known[option] not in os.environ
    }
