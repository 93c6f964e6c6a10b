"""Figures of a last pass: which of them are carried from tile to tile."""

from __future__ import annotations

import numpy as np
import pytest

from raymerge.kernels.delta import KEPT, TIED, UPPER_KEPT, UPPER_TIED
from raymerge.kernels.threshold import Threshold
from raymerge.runtime.figures import carried_among, has_ties, largest


@pytest.mark.parametrize(("kept", "tied"), [(KEPT, TIED), (UPPER_KEPT, UPPER_TIED)])
def test_ties_at_either_end_are_counted(kept: int, tied: int) -> None:
    selectors = largest([None, None], [0, 0])
    assert not has_ties(selectors)

    selectors[1, tied] = 3
    selectors[1, kept] = 3
    assert not has_ties(selectors)

    selectors[1, kept] = 2
    assert has_ties(selectors)


def test_selectors_are_found_among_other_figures() -> None:
    tied = largest([Threshold(bits=1, kept=1, tied=2)], [0])
    others = np.float32(1), 3, np.zeros((1, 11), np.float32), np.zeros((1, 4), np.uint64)
    found = carried_among((*others, tied))

    assert found is not None
    assert np.shares_memory(found, tied)
    assert carried_among((*others, largest([None], [0]))) is None
