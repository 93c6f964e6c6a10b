"""The Hub's library as a guest: its progress bars and its log stand in nobody's way."""

from __future__ import annotations

import logging
import re
from functools import cache

from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

_SIGNED = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]+")


@cache
def quiet_library() -> None:
    """Have no bars of its own beside ours, and no signed address in its log. Once per process."""
    # Where the environment asks for bars the library warns instead of doing as it is told.
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    # A logger's filter sees what is logged with its own name, a handler's what comes from below.
    logging.getLogger("httpx2").addFilter(_without_signatures)
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_without_signatures)


def _without_signatures(record: logging.LogRecord) -> bool:
    # Whoever has a signed address can read the file, private or not, until it expires.
    record.msg, record.args = _SIGNED.sub(r"\1?...", record.getMessage()), None
    return True
