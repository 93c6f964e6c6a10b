"""Who asks: profiles and single sign-on of Amazon, which obstore does not read itself.

Everything else is obstore's own chain: variables, web identity, ECS, instance metadata; a service
account, application default credentials; Azure's identities.
"""

from __future__ import annotations

import functools
import http.client
import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider

_OTHER_WAYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Where one of these is set, shared files are not asked for, unless a profile is named."""
_LOOK_UP_S = 3.0


def profile_credentials() -> Boto3CredentialProvider | None:
    """Credentials of ~/.aws by boto3, where a profile is named or nothing else is given.

    Raises:
        ValueError: AWS_PROFILE is set and cannot be used; the message says why.
    """
    profile = os.environ.get("AWS_PROFILE")
    if not profile and (any(name in os.environ for name in _OTHER_WAYS) or not _shared_files()):
        return None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if profile:
            raise ValueError(
                f"AWS_PROFILE={profile} is read by boto3, which is not installed; "
                "`pip install raymerge[aws]` installs it"
            ) from None
        return None
    try:
        return Boto3CredentialProvider(boto3.Session())
    except (BotoCoreError, ValueError) as error:
        if profile:
            raise ValueError(f"AWS_PROFILE={profile}: {error}") from None
        return None


def profile_key() -> str | None:
    """The id of the access key that a profile gives, where one is in use.

    Raises:
        ValueError: The profile cannot be used, or its login has expired.
    """
    provider = profile_credentials()
    if provider is None:
        return None
    from botocore.exceptions import BotoCoreError

    try:
        return str(provider()["access_key_id"])
    except BotoCoreError as error:
        raise ValueError(f"the profile gives no credentials: {error}; log in again") from None


def _shared_files() -> bool:
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    return any(
        Path(os.environ.get(variable) or Path.home() / ".aws" / name).expanduser().is_file()
        for variable, name in files.items()
    )


@functools.cache
def bucket_region(bucket: str, *, server: str = "https://s3.amazonaws.com") -> str | None:
    """The region a bucket lies in, by one request without credentials; None if that fails."""
    url = urllib.parse.urlsplit(server)
    kinds = {"https": http.client.HTTPSConnection, "http": http.client.HTTPConnection}
    connection = kinds[url.scheme](url.netloc, timeout=_LOOK_UP_S)
    try:
        connection.request("HEAD", f"/{urllib.parse.quote(bucket)}")
        # Also a refusal and a redirect carry it.
        region: str | None = connection.getresponse().getheader("x-amz-bucket-region")
    except (OSError, http.client.HTTPException):
        return None
    else:
        return region
    finally:
        connection.close()


def caller_arn(region: str) -> str | None:
    """Who Amazon says we are, where boto3 is installed and Amazon answers at once."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    patience = Config(
        connect_timeout=_LOOK_UP_S, read_timeout=_LOOK_UP_S, retries={"total_max_attempts": 1}
    )
    try:
        client = boto3.Session().client("sts", region_name=region, config=patience)
        return str(client.get_caller_identity()["Arn"])
    except (BotoCoreError, ClientError, ValueError):
        return None
