"""Which pickled files make up a checkpoint: names in, names out."""

from __future__ import annotations

import pytest

from raymerge.checkpoint.pickles import choose_pickled
from raymerge.errors import SourceError

FIRST, SECOND = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))
MAP = {"a": FIRST, "b": SECOND, "c": FIRST}


@pytest.mark.parametrize(
    ("names", "weight_map", "chosen"),
    [
        (["pytorch_model.bin"], None, ["pytorch_model.bin"]),
        (["config.json", "pytorch_model.bin", "extra.bin"], None, ["pytorch_model.bin"]),
        ([SECOND, FIRST], MAP, [FIRST, SECOND]),
        ([SECOND, FIRST, "stray.pt"], None, [FIRST, SECOND]),
        (["model.pth", "vocab.txt"], None, ["model.pth"]),
        (["x-00001-of-00001.pt"], None, ["x-00001-of-00001.pt"]),
    ],
)
def test_what_is_chosen(
    names: list[str], weight_map: dict[str, str] | None, chosen: list[str]
) -> None:
    assert choose_pickled(names, weight_map, source="src") == chosen


@pytest.mark.parametrize(
    ("names", "weight_map", "words"),
    [
        ([], None, "no pickled weights"),
        ([FIRST], MAP, f"1 of 2 files are missing, {SECOND} first"),
        ([FIRST], None, SECOND),
        (["consolidated.00.pth", "consolidated.01.pth"], None, "2 pickled files"),
        (["adapter_model.bin"], None, "LoRA adapter"),
        ([FIRST, SECOND, "pytorch_model.bin"], MAP, "remove the stale one"),
    ],
)
def test_what_is_refused(names: list[str], weight_map: dict[str, str] | None, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        choose_pickled(names, weight_map, source="src")
    assert caught.value.source == "src"
