"""Credentials do not belong in a message, whoever wrote them there."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(
    r"""
      (?<=://)[^/\s@:]+:[^/\s@]+(?=@)                             # user:password@host
    | \b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}                      # access key ids
    | \b(?:hf_|ya29\.|eyJ)[A-Za-z0-9_\-.]{16,}                    # tokens of Hub, Google, JWT
    | (?<=[?&;\s"])(?:sig|x-amz-(?:signature|credential|security-token)|access_token|AccountKey)
      =[^&\s"<>]+
    | (?:bearer|sharedkey|aws4-hmac-sha256)\s+[^\s"<>]+(?:[^<>"\n]*)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN$|TOKEN_|_KEY$|ACCESS_KEY|MASTER_KEY|SAS|PASSWORD|SERVICE_ACCOUNT_KEY"
)
_SHORTEST_SECRET = 8
"""Shorter values of the environment are words such as `test`, found in any sentence."""


def redact(text: str) -> str:
    """The text with whatever looks like a credential, or stands in the environment as one, gone."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, "[redacted]")
    return _SECRET.sub("[redacted]", text)
