"""Vocabularies beside mergekit 0.1.5, compared by token: the ids it adds change from run to run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from raymerge.storage.posix import PosixFolder
from tests.conftest import Place, read_tensors
from tests.e2e.test_vocabularies import EMBEDDING, HEAD, ORDER, TOKENIZERS, write_models
from tests.peer.mergekit import Mergekit
from tests.vocabularies import by_token, write_tokenizer

pytestmark = pytest.mark.peer
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("peer"))
    write_models(made)
    return made


def rows_by_token(out: Path) -> tuple[Tokenizer, dict[str, Any], dict[str, torch.Tensor]]:
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    config = json.loads((out / "config.json").read_text())
    return made, config, read_tensors(out)


TOKENS = {
    "<x>": {"source": "{b}", "force": True},
    "<q>": {"source": {"kind": "zero"}},
    "<r>": {"source": {"kind": "model_token", "model": "{a}", "token": "ab"}},
    "<s>": {"source": {"kind": "model_token", "model": "{b}", "token_id": 3}},
}
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "union": ("linear", {"tokenizer_source": "union"}),
    "base": ("linear", {"tokenizer_source": "base"}),
    "a model": ("linear", {"tokenizer_source": "{b}"}),
    "not merged": ("linear", {"tokenizer_source": "{b}"}),
    "task vectors": ("task_arithmetic", {"tokenizer_source": "union"}),
    "slerp": ("slerp", {"tokenizer_source": "union"}),
    "ties": ("ties", {"tokenizer_source": "union"}),
    "tokens": ("linear", {"tokenizer": {"source": "union", "tokens": TOKENS}}),
    "tokens of a model": ("linear", {"tokenizer": {"source": "{b}", "tokens": TOKENS}}),
    "padded": ("linear", {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}}),
}
KNOBS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.6, "lambda": 0.8},
    "slerp": {"t": 0.3},
    "ties": {"weight": 0.6, "density": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_mergekit_gives_every_token_the_same_row(
    place: Place, mergekit: Mergekit, tmp_path: Path, case: str
) -> None:
    method, top = CASES[case]
    # mergekit knows a model by its path alone.
    text = json.dumps(top).replace("{a}", str(place / "a")).replace("{b}", str(place / "b"))
    listed = {"linear": ORDER, "slerp": ORDER[:2]}.get(method, ORDER[1:])
    listed = ORDER[:2] if case == "not merged" else listed
    recipe = place.recipe(
        method, listed, base="base", dtype="float32", parameters=KNOBS[method], **json.loads(text)
    )
    Place(tmp_path).merged(recipe, "ours")
    assert not mergekit.run("mergekit-yaml", recipe, tmp_path / "theirs", "--quiet")

    ours, our_config, our_tensors = rows_by_token(tmp_path / "ours")
    theirs, their_config, their_tensors = rows_by_token(tmp_path / "theirs")
    assert set(ours.get_vocab()) == set(theirs.get_vocab())
    assert our_config["vocab_size"] == their_config["vocab_size"]
    for name in (EMBEDDING, HEAD):
        assert our_tensors[name].shape == their_tensors[name].shape
        expected = by_token(their_tensors[name], theirs)
        for token, row in by_token(our_tensors[name], ours).items():
            torch.testing.assert_close(row, expected[token], rtol=0, atol=TOLERANCE, msg=token)
    used = len(ours.get_vocab())
    torch.testing.assert_close(
        our_tensors[EMBEDDING][used:], their_tensors[EMBEDDING][used:], rtol=0, atol=TOLERANCE
    )


def test_mergekit_cuts_padding_rows_which_are_kept_here(mergekit: Mergekit, tmp_path: Path) -> None:
    """It cuts the matrix to the tokenizer; kernels like padded sizes, and users asked why."""
    place = Place(tmp_path)
    models = write_models(place, padding=5)
    recipe = place.recipe(
        "linear", ORDER, base="base", parameters=KNOBS["linear"], tokenizer_source="base"
    )
    ours = place.merged(recipe, "ours")
    assert not mergekit.run("mergekit-yaml", recipe, tmp_path / "theirs", "--quiet")

    tokens = len(TOKENIZERS["base"].get_vocab())
    assert read_tensors(tmp_path / "theirs")[EMBEDDING].shape[0] == tokens
    assert ours[EMBEDDING].shape == models["base"][EMBEDDING].shape


def test_mergekit_takes_the_same_chat_template(mergekit: Mergekit, tmp_path: Path) -> None:
    from raymerge.tokenizer.files import read_tokenizer_files
    from raymerge.tokenizer.template import template_of

    place = Place(tmp_path)
    write_models(place)
    for name, text in zip(ORDER, ("{{ 'one' }}", "{{ 'two' }}", "{{ 'two' }}"), strict=True):
        write_tokenizer(place / name, TOKENIZERS[name], chat_template=text)
    recipe = place.recipe(
        "linear", ORDER, base="base", parameters=KNOBS["linear"], tokenizer_source="base",
        chat_template="auto",
    )  # fmt: skip
    place.merged(recipe, "ours")
    assert not mergekit.run("mergekit-yaml", recipe, tmp_path / "theirs", "--quiet")
    for out in ("ours", "theirs"):
        folder = PosixFolder(tmp_path / out)
        files = read_tokenizer_files(folder, list(folder.sizes()), label=out)
        assert template_of(files) == "{{ 'two' }}"


def test_mergekit_loses_the_generation_config(
    place: Place, mergekit: Mergekit, tmp_path: Path
) -> None:
    recipe = place.recipe(
        "linear", ORDER, base="base", parameters=KNOBS["linear"], tokenizer_source="base"
    )
    Place(tmp_path).merged(recipe, "ours")
    assert not mergekit.run("mergekit-yaml", recipe, tmp_path / "theirs", "--quiet")
    assert (tmp_path / "ours" / "generation_config.json").exists()
    assert not (tmp_path / "theirs" / "generation_config.json").exists()


def test_mergekit_cannot_add_a_token_to_the_bases_tokenizer(
    place: Place, mergekit: Mergekit, tmp_path: Path
) -> None:
    tokenizer = {"source": "base", "tokens": {"<q>": {"source": {"kind": "zero"}}}}
    recipe = place.recipe(
        "linear", ORDER, base="base", parameters=KNOBS["linear"], tokenizer=tokenizer
    )
    assert "KeyError" in mergekit.run("mergekit-yaml", recipe, tmp_path / "theirs", "--quiet")
    merged = Place(tmp_path).merged(recipe, "ours")
    assert not merged[EMBEDDING][-1].any()
