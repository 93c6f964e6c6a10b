"""Who asks an object store, and which one is asked: what `raymerge doctor` shows of a location.

What is shown is no secret: of an access key its last four characters, as Amazon's tools have it, of
an account its name. Which way credentials come is said in the order in which the client looks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymerge.errors import StorageError
from raymerge.storage.clients import is_signed, s3_settings, server_of
from raymerge.storage.credentials import caller_arn, profile_key
from raymerge.storage.options import is_true, of_scheme
from raymerge.storage.store import Access
from raymerge.storage.urls import Location, Scheme

_ANONYMOUS = "nobody: requests are not signed"
_SHOWN = 4
_SHORTEST_KEY = 12


def describe(location: Location, access: Access) -> dict[str, str]:
    """Endpoint, region or account, and identity of a location in an object store.

    Raises:
        StorageError: AWS_PROFILE is set and cannot be used.
    """
    if location.scheme is Scheme.MEMORY:
        return {"identity": "this process"}
    if location.scheme is Scheme.S3:
        try:
            return _amazon(location, access)
        except ValueError as error:
            raise StorageError(f"{location}: {error}", source=str(location)) from None
    options = of_scheme(access.options, location.scheme)
    if location.scheme is Scheme.GS:
        server = server_of(location.scheme, options) or "https://storage.googleapis.com"
        return {"endpoint": server, "identity": _google(options)}
    account = _account(location, options)
    server = server_of(location.scheme, options) or f"https://{account}.blob.core.windows.net"
    return {"endpoint": server, "account": account, "identity": _azure(options)}


def _amazon(location: Location, access: Access) -> dict[str, str]:
    settings = s3_settings(location, access.options)
    server, region = settings.get("endpoint"), settings["region"]
    facts = {"endpoint": server or f"https://s3.{region}.amazonaws.com", "region": region}
    if not is_signed(settings):
        return {**facts, "identity": _ANONYMOUS}
    identity = _amazon_way()
    # Only Amazon itself knows who has a key of Amazon's.
    arn = None if server else caller_arn(region)
    return {**facts, "identity": f"{arn}, by {identity}" if arn else identity}


def _amazon_way() -> str:
    environment = os.environ
    if key := profile_key():
        return f"{shortened(key)} of profile {environment.get('AWS_PROFILE', 'default')}"
    if key := environment.get("AWS_ACCESS_KEY_ID"):
        return f"{shortened(key)} of AWS_ACCESS_KEY_ID"
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in environment:
        return f"web identity, role {environment.get('AWS_ROLE_ARN', 'not named')}"
    if any(name.startswith("AWS_CONTAINER_CREDENTIALS_") for name in environment):
        return "role of the container"
    return "role of the machine, if it has one"


def shortened(key: str) -> str:
    """An access key's id as Amazon's tools show it.

    >>> shortened("AKIAIOSFODNN7EXAMPLE")
    'access key ****************MPLE'
    """
    shown = key[-_SHOWN:] if len(key) >= _SHORTEST_KEY else ""
    return f"access key {shown:*>{max(len(key), _SHOWN)}}"


def _google(options: Mapping[str, str]) -> str:
    if is_true(options.get("skip_signature", os.environ.get("GOOGLE_SKIP_SIGNATURE", ""))):
        return _ANONYMOUS
    if os.environ.get("GOOGLE_BEARER_TOKEN"):
        return "whoever GOOGLE_BEARER_TOKEN is of"
    if key := os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY"):
        return f"{_key_owner(key)} by GOOGLE_SERVICE_ACCOUNT_KEY"
    named = {
        "--storage-option service_account": options.get("service_account"),
        **{name: os.environ.get(name) for name in _GOOGLE_FILES},
        "gcloud": str(Path.home() / ".config/gcloud/application_default_credentials.json"),
    }
    for way, path in named.items():
        if path and (way != "gcloud" or Path(path).is_file()):
            return f"{_file_owner(path)} by {way}"
    return "service account of the machine, if it has one"


_GOOGLE_FILES = (
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_APPLICATION_CREDENTIALS",
)


def _file_owner(path: str) -> str:
    try:
        return _key_owner(Path(path).expanduser().read_text())
    except OSError as error:
        return f"nobody ({path}: {error.strerror})"


def _key_owner(text: str) -> str:
    try:
        key: Any = json.loads(text)
    except ValueError:
        return "a key that is no JSON"
    if not isinstance(key, dict):
        return "a key that is no JSON object"
    if "client_email" in key:
        return f"service account {key['client_email']}"
    return "a user" if key.get("type") == "authorized_user" else f"a {key.get('type', 'key')}"


def _account(location: Location, options: Mapping[str, str]) -> str:
    host = location.root.rpartition("@")[2] if "@" in location.root else ""
    named = (
        host.partition(".")[0],
        options.get("account_name"),
        os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"),
        os.environ.get("AZURE_STORAGE_ACCOUNT"),
    )
    return next(filter(None, named), "not named")


def _azure(options: Mapping[str, str]) -> str:
    environment = os.environ
    if is_true(options.get("skip_signature", environment.get("AZURE_SKIP_SIGNATURE", ""))):
        return _ANONYMOUS
    for variable, what in _AZURE_KEYS.items():
        if environment.get(variable):
            return f"{what} of {variable}"
    client = options.get("client_id") or environment.get("AZURE_CLIENT_ID")
    tenant = options.get("tenant_id") or environment.get("AZURE_TENANT_ID")
    if client and (tenant or environment.get("AZURE_CLIENT_SECRET")):
        return f"client {client} of tenant {tenant or 'not named'}"
    if is_true(options.get("use_azure_cli", environment.get("AZURE_USE_AZURE_CLI", ""))):
        return "whoever has logged in with az"
    return f"managed identity {client or 'of the machine, if it has one'}"


_AZURE_KEYS = {
    "AZURE_STORAGE_ACCOUNT_KEY": "account key",
    "AZURE_STORAGE_ACCESS_KEY": "account key",
    "AZURE_STORAGE_MASTER_KEY": "account key",
    "AZURE_STORAGE_KEY": "account key",
    "AZURE_STORAGE_TOKEN": "bearer token",
    "AZURE_STORAGE_SAS_TOKEN": "shared access signature",
    "AZURE_STORAGE_SAS_KEY": "shared access signature",
}
