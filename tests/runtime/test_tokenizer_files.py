"""The tokenizer beside the shards: what changes, and that nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import raymerge
from raymerge.errors import SourceError
from raymerge.plan.build import Plan
from raymerge.runtime.side_files import side_files
from raymerge.runtime.tokenizer_files import with_tokenizer
from raymerge.storage.posix import PosixFolder
from tests.checkpoints import llama_config, tiny_llama_tensors
from tests.conftest import Place
from tests.vocabularies import size, tokenizer, write_tokenizer

BASE = tokenizer(added=["</s>"])
OTHER = tokenizer(("cd", "ab"), ["<x>", "</s>"])
SPECIAL = {"eos_token": "</s>", "additional_special_tokens": ["</s>"]}
GENERATION = b'{\n "eos_token_id": [10],   "top_p": 0.5}'


@pytest.fixture
def sources(place: Place) -> Place:
    """`base` with every file that names tokens, and `other` with few."""
    for seed, (name, made) in enumerate({"base": BASE, "other": OTHER}.items()):
        tensors = tiny_llama_tensors(seed, vocab=size(made), layers=1)
        text = {"vocab_size": size(made), "eos_token_id": 10}
        config = llama_config(tensors, eos_token_id=10, text_config=text)
        place.model(name, tensors, config=config)
        write_tokenizer(place / name, made, chat_template=f"{{{{ '{name}' }}}}", **SPECIAL)
    write(place / "base", "special_tokens_map.json", {**SPECIAL, "pad_token": {"content": "</s>"}})
    write(place / "base", "added_tokens.json", {"</s>": 10})
    (place / "base" / "generation_config.json").write_bytes(GENERATION)
    (place / "base" / "vocab.json").write_text(" {}")
    (place / "other" / "chat_template.jinja").write_text("{{ 'other' }}")
    return place


def write(folder: Path, name: str, document: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(document))


def planned(place: Place, **top: Any) -> Plan:
    recipe = place.recipe("linear", ["base", "other"], parameters={"weight": 1.0}, **top)
    return raymerge.plan(recipe, engine="local", device="cpu")


def files(plan: Plan) -> dict[str, bytes]:
    return with_tokenizer(plan, side_files(plan, PosixFolder(plan.donor.location)))


def documents(plan: Plan) -> dict[str, Any]:
    return {name: json.loads(raw) for name, raw in files(plan).items() if name.endswith(".json")}


def test_every_file_that_names_tokens_names_the_new_ones(sources: Place) -> None:
    tokens: dict[str, dict[str, str]] = {"<q>": {}}
    made = documents(planned(sources, tokenizer={"source": "union", "tokens": tokens}))

    new = [(entry["id"], entry["content"]) for entry in made["tokenizer.json"]["added_tokens"]]
    assert new == [(10, "</s>"), (11, "<x>"), (12, "<q>")]
    assert made["added_tokens.json"] == {"</s>": 10, "<x>": 11, "<q>": 12}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert made[name]["additional_special_tokens"] == ["</s>", "<x>"]
        assert made[name]["eos_token"] == "</s>"
    assert made["config.json"]["vocab_size"] == 13
    assert made["config.json"]["text_config"] == {"vocab_size": 13, "eos_token_id": 10}


def test_a_decoder_of_added_tokens_is_continued(sources: Place) -> None:
    entry = {"content": "</s>", "special": True, "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False}  # fmt: skip
    config = {**SPECIAL, "added_tokens_decoder": {"10": entry}}
    write(sources / "base", "tokenizer_config.json", config)
    made = documents(planned(sources, tokenizer_source="union"))

    decoder = made["tokenizer_config.json"]["added_tokens_decoder"]
    assert decoder == {"10": entry, "11": {**entry, "content": "<x>"}}


def test_what_does_not_change_stays_byte_for_byte(sources: Place) -> None:
    made = files(planned(sources, tokenizer_source="base"))

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "added_tokens.json", "vocab.json", "generation_config.json"):  # fmt: skip
        assert made[name] == (sources / "base" / name).read_bytes(), name
    assert documents(planned(sources, tokenizer_source="union"))["generation_config.json"] == (
        json.loads(GENERATION)
    )


def test_the_rest_of_a_tokenizer_stays_as_it_was(sources: Place) -> None:
    made = documents(planned(sources, tokenizer_source="union"))["tokenizer.json"]
    before = json.loads((sources / "base" / "tokenizer.json").read_text())

    assert {**made, "added_tokens": None} == {**before, "added_tokens": None}
    assert list(made) == list(before)
    loaded = Tokenizer.from_str(json.dumps(made))
    assert loaded.encode("abcd<x>").tokens == ["ab", "cd", "<x>"]


def test_another_donor_brings_its_files_and_takes_the_others_away(sources: Place) -> None:
    made = files(planned(sources, tokenizer_source="other"))

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert made[name] == (sources / "other" / name).read_bytes()
    assert not made.keys() & {"special_tokens_map.json", "added_tokens.json", "vocab.json"}
    generation = json.loads(made["generation_config.json"])
    assert generation == {"eos_token_id": [11], "top_p": 0.5}


def test_a_donors_file_that_changed_is_refused(sources: Place) -> None:
    plan = planned(sources, tokenizer_source="other")
    (sources / "other" / "tokenizer.json").write_text("{}")

    with pytest.raises(SourceError, match=r"other: tokenizer.json changed since the merge was"):
        files(plan)
    (sources / "other" / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"other: tokenizer.json changed since the merge was"):
        files(plan)


def test_a_template_alone_changes_the_donors_config_alone(sources: Place) -> None:
    write_tokenizer(sources / "other", BASE)
    tensors = tiny_llama_tensors(1, vocab=size(BASE), layers=1)
    sources.model("other", tensors, config=llama_config(tensors))
    write_tokenizer(sources / "other", BASE)
    plain = planned(sources)
    made = planned(sources, chat_template="{{ 'mine' }}")

    before, after = files(plain), files(made)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"tokenizer_config.json"}
    assert json.loads(after["tokenizer_config.json"])["chat_template"] == "{{ 'mine' }}"
    assert plain.digest != made.digest


def test_a_template_that_no_source_has_is_not_written(sources: Place) -> None:
    for name in ("base", "other"):
        write_tokenizer(sources / name, BASE if name == "base" else OTHER)
    (sources / "other" / "chat_template.jinja").unlink()
    made = files(planned(sources, tokenizer_source="base", chat_template="auto"))

    assert "chat_template.jinja" not in made
    assert "chat_template" not in json.loads(made["tokenizer_config.json"])
