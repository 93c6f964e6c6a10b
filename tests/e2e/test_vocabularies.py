"""Models of different vocabularies: what each row of the output is, by the rule spelt out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from tests.checkpoints import llama_config, tiny_llama_tensors, write_checkpoint
from tests.conftest import METHOD_KNOBS, Place, raw, read_tensors
from tests.vocabularies import by_token, completed, size, tokenizer, write_tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZERS = {
    "base": tokenizer(added=["</s>"]),
    "a": tokenizer(added=["</s>", "<x>", "<y>"]),
    # Other ids for the same tokens, and one of its own.
    "b": tokenizer(("cd", "gh", "ab"), ["</s>", AddedToken("<y>", lstrip=True), "<x>", "<z>"]),
}
ORDER = ("base", "a", "b")


def write_models(
    place: Place, *, padding: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, dict[str, Tensor]]:
    """Three models with their tokenizers; the base with some rows more than tokens."""
    models = {}
    for seed, (name, made) in enumerate(TOKENIZERS.items()):
        rows = size(made) + (padding if name == "base" else 0)
        tensors = tiny_llama_tensors(seed, vocab=rows, dtype=dtype, layers=1, **options)
        config = llama_config(
            tensors, tied=bool(options.get("tied")), eos_token_id=10, bos_token_id=0
        )
        place.model(name, tensors, config=config)
        write_tokenizer(place / name, made, eos_token="</s>")
        (place / name / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [made.token_to_id("</s>")], "top_p": 0.5})
        )
        models[name] = tensors
    return models


def rows_of(models: Mapping[str, Mapping[str, Tensor]], name: str) -> list[dict[str, Tensor]]:
    return [by_token(models[source][name], TOKENIZERS[source]) for source in ORDER]


def written(place: Place, out: str = "out") -> Tokenizer:
    return Tokenizer.from_file(str(place / out / "tokenizer.json"))


UNION = ["<x>", "<y>", "gh", "<z>"]
"""What the union adds to the base's tokens, in the order of their ids."""


@pytest.fixture(scope="module")
def merged_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("vocabularies"))
    write_models(place)
    return place


POLICIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "union": ({"tokenizer_source": "union"}, [*TOKENIZERS["base"].get_vocab(), *UNION]),
    "base": ({"tokenizer_source": "base"}, [*TOKENIZERS["base"].get_vocab()]),
    "model": ({"tokenizer_source": "b"}, [*TOKENIZERS["b"].get_vocab()]),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_an_average_is_taken_token_by_token(
    merged_place: Place, tmp_path: Path, policy: str
) -> None:
    place = merged_place
    top, tokens = POLICIES[policy]
    models = {name: read_tensors(place / name) for name in ORDER}
    recipe = place.recipe("linear", ORDER, parameters={"weight": 1.0}, **top)
    merged = Place(tmp_path).merged(recipe)

    made = written(Place(tmp_path))
    assert set(made.get_vocab()) == set(tokens)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert merged[EMBEDDING].shape[0] == config["vocab_size"] == len(tokens)
    for name in (EMBEDDING, HEAD):
        expected = completed(tokens, rows_of(models, name))
        for token, row in by_token(merged[name], made).items():
            mean = sum(source[token].double() for source in expected) / 3
            torch.testing.assert_close(row.double(), mean, rtol=0, atol=1e-8)


def test_added_tokens_get_the_next_ids_in_recipe_order(merged_place: Place) -> None:
    recipe = merged_place.recipe(
        "linear", ORDER, parameters={"weight": 1}, tokenizer_source="union"
    )
    plan = merged_place.run("plan", recipe, "--json").json

    first = size(TOKENIZERS["base"])
    assert plan["vocabulary"]["added"] == {t: first + i for i, t in enumerate(UNION)}
    reversed_order = merged_place.recipe(
        "linear", ("base", "b", "a"), parameters={"weight": 1}, tokenizer_source="union"
    )
    other = merged_place.run("plan", reversed_order, "--json").json
    assert list(other["vocabulary"]["added"]) == ["gh", "<y>", "<x>", "<z>"]
    assert plan["digest"] != other["digest"]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_task_vectors_are_taken_over_the_outputs_rows(
    merged_place: Place, tmp_path: Path, method: str
) -> None:
    """The merge equals one of models that were remapped beforehand."""
    models = {name: read_tensors(merged_place / name) for name in ORDER}
    place = Place(tmp_path)
    knobs: dict[str, Any] = {"parameters": METHOD_KNOBS[method]}
    recipe = merged_place.recipe(method, base="base", tokenizer_source="union", **knobs)
    merged = place.merged(recipe, "merged")
    made = written(place, "merged")
    ids = made.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    for position, source in enumerate(ORDER):
        tensors = dict(models[source])
        for name in (EMBEDDING, HEAD):
            rows = completed(tokens, rows_of(models, name))[position]
            tensors[name] = torch.stack([rows[token] for token in tokens])
        write_checkpoint(place / source, tensors, config=llama_config(tensors))
    expected = place.merged(place.recipe(method, base="base", **knobs), "expected")
    assert {n: raw(t) for n, t in merged.items()} == {n: raw(t) for n, t in expected.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tiles_change_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    import raymerge

    place = Place(tmp_path)
    write_models(place, padding=3, dtype=dtype, hidden=48)
    recipe = place.recipe(
        "ties",
        base="base",
        parameters=METHOD_KNOBS["ties"],
        tokenizer={"source": "union", "pad_to_multiple_of": 16},
    )
    bytes_of = []
    for tile in (256, 512, 2**18):
        out = tmp_path / str(tile)
        raymerge.merge(recipe, out, engine="local", device="cpu", tile_elements=tile)
        bytes_of.append({n: raw(t) for n, t in read_tensors(out).items()})
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


def test_the_recipe_names_rows(merged_place: Place, tmp_path: Path) -> None:
    place = merged_place
    models = {name: read_tensors(place / name) for name in ORDER}
    tokens = {
        "<x>": {"source": str(place / "b"), "force": True},
        "<y>": {"source": {"kind": "model_token", "model": "a", "token": "ab"}},
        "<q>": {"source": {"kind": "zero"}},
        "<r>": {"source": {"kind": "model_token", "model": "b", "token_id": 2}},
        "a": {"source": {"kind": "zero"}, "force": True},
    }
    recipe = place.recipe(
        "linear", ORDER, parameters={"weight": 1.0}, tokenizer={"source": "base", "tokens": tokens}
    )
    merged = by_token(Place(tmp_path).merged(recipe)[EMBEDDING], written(Place(tmp_path)))

    base, a, b = rows_of(models, EMBEDDING)
    torch.testing.assert_close(merged["<x>"], b["<x>"])
    torch.testing.assert_close(merged["<y>"], (a["ab"] + a["<y>"] + b["<y>"]) / 3)
    torch.testing.assert_close(merged["<r>"], b["c"])
    assert not merged["<q>"].any()
    assert not merged["a"].any()
    torch.testing.assert_close(merged["b"], (base["b"] + a["b"] + b["b"]) / 3)


def test_padding_rows_are_kept_unless_the_recipe_pads(tmp_path: Path) -> None:
    place = Place(tmp_path)
    models = write_models(place, padding=21)
    merge: dict[str, Any] = {"parameters": {"weight": 1.0}}
    kept = place.merged(place.recipe("linear", ORDER, tokenizer_source="base", **merge))
    num = size(TOKENIZERS["base"])
    assert kept[EMBEDDING].shape[0] == num + 21
    # Neither of the others has padding there, so the base's stands in for both.
    torch.testing.assert_close(kept[EMBEDDING][num + 3 :], models["base"][EMBEDDING][num + 3 :])

    padded = {"source": "base", "pad_to_multiple_of": 8}
    rounded = place.merged(place.recipe("linear", ORDER, tokenizer=padded, **merge), "padded")
    assert rounded[EMBEDDING].shape[0] == 16
    mean = rounded[EMBEDDING][:num].mean(0)
    for row in rounded[EMBEDDING][num:]:
        torch.testing.assert_close(row, mean)
    config = json.loads((place / "padded" / "config.json").read_text())
    assert config["vocab_size"] == 16


@pytest.mark.parametrize(
    ("policy", "config", "expected"),
    [
        ("union", {}, {"vocab_size": 15}),
        ("union", {"vocab_size": None}, {"vocab_size": 15}),
        ("union", {"text_config": {"n": 1}}, {"text_config": {"n": 1, "vocab_size": 15}}),
        (
            "union",
            {"vocab_size": 11, "thinker_config": {"text_config": {}}, "vision_config": {}},
            {
                "vocab_size": 15,
                "thinker_config": {"text_config": {"vocab_size": 15}},
                "vision_config": {},
            },
        ),
        ("base", {}, {}),
        ("base", {"text_config": {}}, {"text_config": {}}),
    ],
)
def test_a_size_that_the_config_leaves_to_its_class_is_written_where_it_changes(
    merged_place: Place,
    tmp_path: Path,
    policy: str,
    config: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    shutil.copytree(merged_place / "base", tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    place = Place(tmp_path)
    models = [str(tmp_path / "base"), str(merged_place / "a"), str(merged_place / "b")]
    place.merged(
        place.recipe("linear", models, parameters={"weight": 1.0}, tokenizer_source=policy)
    )

    assert json.loads((tmp_path / "out" / "config.json").read_text()) == expected


def test_a_gpt2_of_the_usual_size_can_be_loaded_with_more_tokens(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    place = Place(tmp_path)
    for name, added in (("base", []), ("a", ["<x>", "<y>"])):
        made = Tokenizer(models.WordLevel({f"w{n}": n for n in range(50257)}, unk_token="w0"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.add_tokens([AddedToken(token, special=True) for token in added])
        options = GPT2Config(n_embd=4, n_layer=1, n_head=1, n_positions=8, vocab_size=size(made))
        GPT2LMHeadModel(options).save_pretrained(place / name)
        write_tokenizer(place / name, made)
    path = place / "base" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("vocab_size") == 50257
    path.write_text(json.dumps(config))
    knobs: dict[str, Any] = {"parameters": {"weight": 1.0}}
    place.merged(place.recipe("linear", ("base", "a"), tokenizer_source="union", **knobs))

    model, report = AutoModelForCausalLM.from_pretrained(place / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.vocab_size == 50259


def test_union_takes_up_padding_rows_first(tmp_path: Path) -> None:
    place = Place(tmp_path)
    write_models(place, padding=21)
    recipe = place.recipe("linear", ORDER, parameters={"weight": 1.0}, tokenizer_source="union")
    merged = place.merged(recipe)

    assert merged[EMBEDDING].shape[0] == size(TOKENIZERS["base"]) + 21
    assert written(place).token_to_id("<x>") == size(TOKENIZERS["base"])


@pytest.mark.parametrize("tied", ["base", "a", "all"])
def test_tied_heads_stay_what_they_are(tmp_path: Path, tied: str) -> None:
    """A head that a source does not store is its embedding, for others' rows as well."""
    place = Place(tmp_path)
    models = write_models(place)
    for name in ORDER if tied == "all" else (tied,):
        del models[name][HEAD]
        config = llama_config(models[name], tied=True)
        place.model(name, models[name], config=config)
        write_tokenizer(place / name, TOKENIZERS[name])
    recipe = place.recipe("linear", ORDER, parameters={"weight": 1.0}, tokenizer_source="union")
    merged = place.merged(recipe)
    assert place.run("verify", place / "out").rc == 0
    assert (HEAD in merged) is (tied != "all")

    if tied != "all":
        heads = {n: {HEAD: models[n].get(HEAD, models[n][EMBEDDING])} for n in ORDER}
        made = written(place)
        expected = completed(list(made.get_vocab()), rows_of(heads, HEAD))
        for token, row in by_token(merged[HEAD], made).items():
            torch.testing.assert_close(row, sum(e[token] for e in expected) / 3)


def test_a_tokenizer_of_another_source_brings_its_ids_along(
    merged_place: Place, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    recipe = merged_place.recipe("linear", ORDER, parameters={"weight": 1.0}, tokenizer_source="b")
    place.merged(recipe)

    copied = (place / "out" / "tokenizer.json").read_bytes()
    assert copied == (merged_place / "b" / "tokenizer.json").read_bytes()
    generation = json.loads((place / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [11], "top_p": 0.5}
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["eos_token_id"] == 10  # as b's own config says


def test_the_plan_shows_the_vocabulary(merged_place: Place) -> None:
    recipe = merged_place.recipe(
        "linear",
        ORDER,
        parameters={"weight": 1.0},
        tokenizer_source="union",
        chat_template="chatml",
    )
    shown = merged_place.run("plan", recipe).out

    assert "vocabulary     union, beginning with base: 15 tokens in 15 rows\n" in shown
    assert "added 4: '<x>' 11, '<y>' 12, 'gh' 13, '<z>' 14\n" in shown
    assert "1 of them are ordinary tokens elsewhere: without their merges they are found" in shown
    assert "a: 13 tokens in 13 rows, lacks 2 of the output's\n" in shown
    assert "chat template  chatml\n" in shown
    graph = merged_place.run("plan", recipe, "--graph", HEAD).out
    assert "rows by token: 11 its own, 2 of another source, 2 averaged" in graph


@pytest.mark.parametrize("knobs", [{}, {"scale": 0.5}], ids=["copied", "scaled"])
def test_one_model_alone_can_be_padded(tmp_path: Path, knobs: dict[str, float]) -> None:
    place = Place(tmp_path)
    models = write_models(place)
    recipe = place.recipe(
        "passthrough",
        ["a"],
        parameters=knobs,
        tokenizer={"source": "base", "pad_to_multiple_of": 8},
    )
    merged = place.merged(recipe)

    for name in (EMBEDDING, HEAD):
        expected = models["a"][name] * knobs.get("scale", 1.0)
        mean = expected.double().mean(0).float().expand(3, -1)
        torch.testing.assert_close(merged[name], torch.cat([expected, mean]), rtol=0, atol=1e-9)
    assert place.run("verify", place / "out").rc == 0


def test_a_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    """`[PAD]` was added to the tokenizer and the embedding never resized."""
    place = Place(tmp_path)
    with_pad = tokenizer(added=["</s>", "[PAD]"])
    for seed, name in enumerate(("base", "a")):
        tensors = tiny_llama_tensors(seed, vocab=size(with_pad) - 1, layers=1)
        place.model(name, tensors, config=llama_config(tensors))
        write_tokenizer(place / name, with_pad, eos_token="</s>", pad_token="[PAD]")
    merge: dict[str, Any] = {"parameters": {"weight": 1.0}}
    place.merged(place.recipe("linear", ("base", "a"), tokenizer_source="union", **merge))
    assert written(place).token_to_id("[PAD]") is None
    config = json.loads((place / "out" / "tokenizer_config.json").read_text())
    assert "pad_token" not in config
    # Given a row by the recipe it is there.
    tokens = {"[PAD]": {"source": {"kind": "zero"}}}
    recipe = place.recipe("linear", ("base", "a"), tokenizer={"tokens": tokens}, **merge)
    merged = place.merged(recipe, "padded")
    assert written(place, "padded").token_to_id("[PAD]") == 11
    assert not merged[EMBEDDING][11].any()


@pytest.mark.filterwarnings("default")
def test_transformers_loads_model_and_tokenizer(merged_place: Place, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = Place(tmp_path)
    recipe = merged_place.recipe(
        "linear",
        ORDER,
        parameters={"weight": 1.0},
        tokenizer_source="union",
        chat_template="chatml",
    )
    place.merged(recipe)
    _, report = AutoModelForCausalLM.from_pretrained(place / "out", output_loading_info=True)
    assert not any(report.values()), report
    loaded = AutoTokenizer.from_pretrained(place / "out")
    base = TOKENIZERS["base"]
    assert len(loaded) == 15
    assert loaded("abcdef")["input_ids"] == base.encode("abcdef").ids
    assert loaded("ab<x>c")["input_ids"] == [
        base.token_to_id("ab"),
        size(base),
        base.token_to_id("c"),
    ]
    assert loaded.decode(loaded("ab<x>c<z>d")["input_ids"]) == "ab<x>c<z>d"
    assert loaded.decode(loaded("ab<x>c")["input_ids"], skip_special_tokens=True) == "abc"
    prompt = loaded.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False)
    assert prompt == "<|im_start|>user\nabc<|im_end|>\n"


# --- a tokenizer of a model that is not merged ---------------------------------------------------


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_model_outside_the_merge_gives_its_tokenizer(
    merged_place: Place, tmp_path: Path, engine: str
) -> None:
    place = Place(tmp_path)
    lender = place / "lender"
    shutil.copytree(merged_place / "b", lender)
    for weights in lender.glob("*.safetensors*"):
        weights.unlink()
    config = json.loads((lender / "config.json").read_text())
    (lender / "config.json").write_text(json.dumps(config | {"vocab_size": 17}))
    (lender / "chat_template.jinja").write_text("{{ messages }}")
    models = {name: read_tensors(merged_place / name) for name in ORDER[:2]}
    recipe = merged_place.recipe(
        "linear", ORDER[:2], parameters={"weight": 1}, tokenizer_source=str(lender)
    )
    plan = place.run("plan", recipe).out
    assert "in no model that is merged, so rows of zeros 2: 'gh', '<z>'" in plan
    merged = place.merged(recipe, "out", "--engine", engine, "--device", "cpu", "--workers", 1)

    made = TOKENIZERS["b"]
    assert (place / "out" / "tokenizer.json").read_bytes() == (
        lender / "tokenizer.json"
    ).read_bytes()
    assert (place / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    written_config = json.loads((place / "out" / "config.json").read_text())
    assert written_config["vocab_size"] == merged[EMBEDDING].shape[0] == 17
    generation = json.loads((place / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [made.token_to_id("</s>")]
    for name in (EMBEDDING, HEAD):
        own = [by_token(models[source][name], TOKENIZERS[source]) for source in ORDER[:2]]
        expected = completed([*made.get_vocab()], own)
        for token, row in by_token(merged[name], made).items():
            torch.testing.assert_close(row, (expected[0][token] + expected[1][token]) / 2)
        assert not merged[name][len(made.get_vocab()) :].any()
    card = (place / "out" / "README.md").read_text()
    assert "| lender tokenizer | tokenizer |" in card
    assert "- lender" not in card

    # What it lends is part of what the merge is.
    (lender / "chat_template.jinja").write_text("{{ other }}")
    again = place.merge(recipe, "out", "--engine", "local", "--device", "cpu")
    assert again.rc == 2
    assert "already holds" in again.err


def test_only_the_stage_that_is_written_takes_a_tokenizer_from_outside(
    merged_place: Place, tmp_path: Path
) -> None:
    first, second = (
        f"name: {name}\nmerge_method: linear\nmodels: [{', '.join(models)}]\n"
        "parameters: {weight: 1}\n"
        for name, models in (("one", [str(merged_place / "base")] * 1), ("two", ["one"]))
    )
    lends = f"tokenizer_source: {merged_place / 'b'}\n"
    recipe = tmp_path / "stages.yaml"
    recipe.write_text(f"{first}{lends}---\n{second}")
    done = merged_place.run("plan", recipe)
    assert done.rc == 2
    assert f"stages.yaml:5: tokenizer: {merged_place / 'b'} is not merged, and gives" in done.err


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "lender tokenizer has no file that lists its tokens"),
        (None, "lender"),
    ],
)
def test_what_cannot_lend_a_tokenizer_is_refused(
    merged_place: Place, tmp_path: Path, files: tuple[str, ...] | None, said: str
) -> None:
    if files is not None:
        (tmp_path / "lender").mkdir()
        (tmp_path / "lender" / "config.json").write_text("{}")
    recipe = merged_place.recipe(
        "linear", ORDER[:2], parameters={"weight": 1}, tokenizer_source=str(tmp_path / "lender")
    )
    done = merged_place.run("plan", recipe)
    assert done.rc == 3, done.err
    assert said in done.err


def test_the_template_of_a_model_outside_counts_where_no_other_has_one(
    merged_place: Place, tmp_path: Path
) -> None:
    lender = tmp_path / "lender"
    shutil.copytree(merged_place / "b", lender)
    (lender / "chat_template.jinja").write_text("{{ messages }}")
    recipe = merged_place.recipe(
        "linear", ORDER[:2], parameters={"weight": 1}, chat_template="auto",
        tokenizer_source=str(lender),
    )  # fmt: skip
    assert "that of lender tokenizer" in merged_place.run("plan", recipe).out
    Place(tmp_path).merged(recipe)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_plan_lists_every_row_of_zeros(merged_place: Place) -> None:
    tokens = {"<z>": {"force": True}, "<n>": {}, "<m>": {"source": {"kind": "zero"}}}
    top: dict[str, Any] = {"tokenizer": {"source": str(merged_place / "b"), "tokens": tokens}}
    recipe = merged_place.recipe("linear", ORDER[:2], parameters={"weight": 1}, **top)
    unknown = merged_place.run("plan", recipe, "--json").json["vocabulary"]["unknown"]
    assert sorted(unknown) == ["<n>", "<z>", "gh"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_mean_that_fills_a_row_is_not_rounded_on_its_way(tmp_path: Path, *, keep: bool) -> None:
    place = Place(tmp_path)
    models = write_models(place, dtype=torch.bfloat16)
    kept = {"keep": EMBEDDING} if keep else {}
    recipe = place.recipe(
        "linear", ORDER, parameters={"weight": 1.0}, tokenizer_source="union", dtype="float32",
        **kept,
    )  # fmt: skip
    merged = place.merged(recipe)
    made = written(place)
    expected = completed([*made.get_vocab()], rows_of(models, HEAD))
    for token, row in by_token(merged[HEAD], made).items():
        mean = sum(source[token].double() for source in expected) / 3
        torch.testing.assert_close(row.double(), mean, rtol=0, atol=1e-8)
    assert merged[HEAD].dtype is torch.float32
    assert merged[EMBEDDING].dtype is (torch.bfloat16 if keep else torch.float32)


def test_a_mean_of_bfloat16_rows_has_all_the_digits_of_float16(tmp_path: Path) -> None:
    place = Place(tmp_path)
    models = write_models(place, dtype=torch.bfloat16)
    recipe = place.recipe(
        "linear", ORDER, parameters={"weight": 1.0}, tokenizer_source="union", dtype="float16"
    )
    merged = place.merged(recipe)
    made = written(place)
    expected = completed([*made.get_vocab()], rows_of(models, HEAD))
    for token, row in by_token(merged[HEAD], made).items():
        mean = torch.stack([source[token].double() for source in expected]).mean(0)
        # Half a step of float16 at most, and the noise of a float32 sum.
        assert bool(((row.double() - mean).abs() <= mean.abs() * 2**-11 + 1e-8).all())
