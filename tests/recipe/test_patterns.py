"""`drop` and `keep` patterns."""

from __future__ import annotations

import pytest

from raymerge.recipe.patterns import matches


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        ((), "a", False),
        (("*",), "anything.at.all", True),
        (("*.mtp.*",), "model.mtp.0.weight", True),
        (("*.mtp.*",), "mtp.0.weight", False),
        (("lm_head.weight",), "lm_head.weight", True),
        (("lm_head.weight",), "xlm_head.weight", False),
        (("lm_head",), "lm_head.weight", False),
        (("LM_head.weight",), "lm_head.weight", False),
        (("layers.[0-3].*",), "layers.3.w", True),
        (("layers.[0-3].*",), "layers.4.w", False),
        (("layers.?.w",), "layers.10.w", False),
        (("a.b",), "axb", False),
        (("x", "y*"), "yes", True),
    ],
)
def test_a_pattern_is_a_glob_over_the_whole_name(
    patterns: tuple[str, ...], name: str, *, expected: bool
) -> None:
    assert matches(patterns, name) is expected
