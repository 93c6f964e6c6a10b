"""What a person is told about a request that failed: the cause, and what to do about it."""

from __future__ import annotations

from raymerge.storage.failures import Cause, Failure
from raymerge.storage.urls import Location, Scheme


def explain(failure: Failure, location: Location) -> str:
    """The cause and what to do about it, behind the name of what could not be done."""
    what, advice = _WORDS[failure.cause]
    advice = _ADVICE.get((_family(location.scheme), failure.cause), advice)
    text = f"{what} ({failure.said}). {advice}" if advice else f"{what} ({failure.said})."
    return text.replace("{root}", location.root)


def _family(scheme: Scheme) -> Scheme:
    return Scheme.AZ if scheme in {Scheme.ABFS, Scheme.ABFSS} else scheme


_WORDS = {
    Cause.MISSING: ("it is not there", ""),
    Cause.NO_BUCKET: (
        "there is no {root}",
        "Check the name, and the endpoint if it is not the cloud's own.",
    ),
    Cause.EXISTS: ("there is one already", ""),
    Cause.CHANGED: ("it is not the object that was expected", ""),
    Cause.DENIED: ("access was denied", "Check the credentials in the environment."),
    Cause.EXPIRED: ("the credentials have expired", "Log in again, or get a new token."),
    Cause.NO_CREDENTIALS: ("no usable credentials were found", ""),
    Cause.REGION: ("the bucket lies in another region", "Set AWS_REGION to its region."),
    Cause.CLOCK: ("this machine's clock is wrong", "Set it; signed requests carry the time."),
    Cause.UNREACHABLE: (
        "the server could not be reached",
        "Check the endpoint, the network and the proxy.",
    ),
    Cause.UNTRUSTED: (
        "the server's certificate is not trusted",
        "Check the endpoint; `--storage-option allow_invalid_certificates=true` trusts any.",
    ),
    Cause.NOT_TLS: ("the server does not speak TLS", "Write http:// in the endpoint, if you may."),
    Cause.NO_ACCOUNT: (
        "the storage account is not named",
        "Set AZURE_STORAGE_ACCOUNT_NAME, or write abfss://container@account.dfs.core.windows.net/.",
    ),
    Cause.BUSY: ("the server refused for the moment", "Run it again later, or with fewer workers."),
    Cause.BROKEN: ("the answer did not come whole", "Run it again; `raymerge doctor` measures it."),
    Cause.UNKNOWN: ("the request failed", ""),
}
_ADVICE = {
    (Scheme.S3, Cause.DENIED): (
        "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and the rights they have on "
        "{root}; a public bucket is read with `--storage-option skip_signature=true`."
    ),
    (Scheme.S3, Cause.EXPIRED): (
        "Log in again (`aws sso login`), or set a new AWS_SESSION_TOKEN with its keys."
    ),
    (Scheme.S3, Cause.NO_CREDENTIALS): (
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with raymerge[aws] "
        "installed, or run where there is a role (EC2, ECS, EKS); a public bucket is read with "
        "`--storage-option skip_signature=true`."
    ),
    (Scheme.GS, Cause.DENIED): (
        "Check the account of `gcloud auth application-default login` or "
        "GOOGLE_APPLICATION_CREDENTIALS and its rights on {root}; a public bucket is read with "
        "`--storage-option skip_signature=true`."
    ),
    (Scheme.GS, Cause.NO_CREDENTIALS): (
        "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS or "
        "GOOGLE_SERVICE_ACCOUNT to a key file; a public bucket is read with "
        "`--storage-option skip_signature=true`."
    ),
    (Scheme.AZ, Cause.DENIED): (
        "Check AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or the identity and its role "
        "on {root} (Storage Blob Data Reader or Contributor)."
    ),
    (Scheme.AZ, Cause.NO_CREDENTIALS): (
        "Set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID with "
        "AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or AZURE_USE_AZURE_CLI=true after `az login`; a "
        "public container is read with `--storage-option skip_signature=true`."
    ),
}
