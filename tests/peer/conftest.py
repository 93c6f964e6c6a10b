"""The peer and its models: made once for all comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.peer.mergekit import Mergekit, find_python
from tests.peer.models import write_family


@pytest.fixture(scope="package")
def mergekit() -> Iterator[Mergekit]:
    """mergekit, running."""
    python = find_python()
    if python is None:
        pytest.skip("needs mergekit-yaml beside this Python, or RAYMERGE_PEER=/path/to/it")
    with Mergekit(python) as running:
        yield running


@pytest.fixture(scope="package")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture's `base`, `a`, `b` and `c`."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda architecture: write_family(root / architecture, architecture))
