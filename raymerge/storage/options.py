"""`--storage-option NAME=VALUE`: which names there are for which scheme, and which are secrets.

The names are obstore's. Options are stored in plans and sent to workers, so a secret is refused
here; it belongs in the environment of every process.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from raymerge.errors import PlanError
from raymerge.storage.urls import Scheme

CLIENT = frozenset(
    (
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "proxy_excludes",
        "proxy_url",
        "read_timeout",
        "timeout",
    )
)
"""Of the connection, for every object store."""
_S3 = frozenset(
    (
        "checksum_algorithm",
        "disable_tagging",
        "endpoint",
        "imdsv1_fallback",
        "metadata_endpoint",
        "region",
        "request_payer",
        "role_arn",
        "role_session_name",
        "s3_express",
        "server_side_encryption",
        "skip_signature",
        "sse_bucket_key_enabled",
        "sse_kms_key_id",
        "unsigned_payload",
        "virtual_hosted_style_request",
    )
)
_GS = frozenset(("base_url", "service_account", "skip_signature"))
_AZ = frozenset(
    (
        "account_name",
        "authority_host",
        "client_id",
        "credential_type",
        "disable_tagging",
        "endpoint",
        "federated_token_file",
        "msi_endpoint",
        "msi_resource_id",
        "object_id",
        "skip_signature",
        "tenant_id",
        "use_azure_cli",
        "use_emulator",
        "use_fabric_endpoint",
    )
)
NAMES: Mapping[Scheme, frozenset[str]] = {
    Scheme.S3: _S3,
    Scheme.GS: _GS,
    Scheme.AZ: _AZ,
    Scheme.ABFS: _AZ,
    Scheme.ABFSS: _AZ,
}
"""Of the store itself, by scheme."""

SECRETS: Mapping[str, str] = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "sse_customer_key_base64": "AWS_SSE_CUSTOMER_KEY_BASE64",
    "service_account_key": "GOOGLE_SERVICE_ACCOUNT_KEY",
    "bearer_token": "GOOGLE_BEARER_TOKEN",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_key": "AZURE_STORAGE_SAS_TOKEN",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
    "client_secret": "AZURE_CLIENT_SECRET",
    "encryption_key": "AZURE_ENCRYPTION_KEY",
    "fabric_session_token": "AZURE_FABRIC_SESSION_TOKEN",
    "token": "the variable of your store",
}
"""Options of obstore that are none here, and the environment variable that takes their place."""
_PREFIXES = ("aws_", "azure_storage_", "azure_", "google_")


def check_options(options: Mapping[str, str], schemes: Collection[Scheme]) -> None:
    """Raise unless every option is one of some scheme in use, and none is a secret.

    Args:
        options: Of the command line.
        schemes: Of all sources and destinations of a run.

    Raises:
        PlanError: The message never holds a value.
    """
    known = CLIENT.union(*(NAMES.get(scheme, frozenset()) for scheme in schemes))
    for name, value in options.items():
        if variable := SECRETS.get(_bare(name)):
            raise PlanError(
                f"--storage-option {name}: a command line is seen by everybody on the machine and "
                f"stored in its history; set {variable} in the environment instead"
            )
        if name not in known:
            raise PlanError(f"--storage-option {name}: {_suggest(name, known, schemes)}")
        if "@" in value and ("://" in value or name == "proxy_url"):
            raise PlanError(
                f"--storage-option {name}: its URL names a user; set HTTPS_PROXY, or the variable "
                "of your store, in the environment instead"
            )


def of_scheme(options: Mapping[str, str], scheme: Scheme) -> dict[str, str]:
    """The options that concern a store of this scheme, those of the connection not among them."""
    return {name: value for name, value in options.items() if name in NAMES.get(scheme, ())}


def of_client(options: Mapping[str, str]) -> dict[str, str | bool]:
    """The options of the connection, switches as such."""
    chosen = {name: value for name, value in options.items() if name in CLIENT}
    return {
        name: is_true(value) if name.startswith("allow_") else value
        for name, value in chosen.items()
    }


def is_true(value: str) -> bool:
    """Whether a switch, as people write it, is on."""
    return value.strip().lower() in {"1", "true", "yes", "on", "y"}


def _bare(name: str) -> str:
    lowered = name.lower()
    for prefix in _PREFIXES:
        if lowered.startswith(prefix):
            return lowered.removeprefix(prefix)
    return lowered


def _suggest(name: str, known: Collection[str], schemes: Collection[Scheme]) -> str:
    if (bare := _bare(name).replace("-", "_")) in known:
        return f"there is no such option; did you mean {bare}?"
    if close := difflib.get_close_matches(bare, sorted(known), n=1):
        return f"there is no such option; did you mean {close[0]}?"
    if elsewhere := [scheme for scheme, names in NAMES.items() if bare in names]:
        return f"it is an option of {elsewhere[0]}://, and this run has none"
    used = ", ".join(sorted({f"{scheme}://" for scheme in schemes})) or "this run"
    return f"there is no such option; those of {used} are {', '.join(sorted(known))}"
