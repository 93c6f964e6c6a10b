"""Models that both programs merge: made once for all comparisons."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.peer.models import write_family


@pytest.fixture(scope="package")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture's `base`, `a`, `b` and `c`."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda architecture: write_family(root / architecture, architecture))
