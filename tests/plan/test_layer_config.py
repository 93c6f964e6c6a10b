"""What slices make of config.json, for architectures of many hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from raymerge.errors import PlanError
from raymerge.plan.layer_config import layer_config
from raymerge.plan.parts import Stack

FULL, SLIDING = "full_attention", "sliding_attention"
WAS = [FULL, SLIDING, SLIDING, FULL]


def stack(
    origin: Sequence[int | tuple[int, int]],
    *depths: int,
    name: str = "model.layers",
) -> Stack:
    """A stack of layers, each from a layer of source 0 or from `(source, layer)`."""
    return Stack(
        name=name,
        slices=(),
        origin=tuple(at if isinstance(at, tuple) else (0, at) for at in origin),
        depths=depths,
        before=(),
        after=(),
    )


def rewritten(built: Stack, *configs: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Edits by key, and notes; the first source is the donor."""
    change = layer_config([built], configs, donor=0)
    return {edit.key: edit.value for edit in change.edits}, change.notes


REPEATED = [0, 1, 2, 3, 2, 3]
"""Four layers, the last two once more."""


@pytest.mark.parametrize(
    ("name", "config", "edits"),
    [
        ("model.layers", {"num_hidden_layers": 4}, {"num_hidden_layers": 6}),
        ("transformer.h", {"n_layer": 4, "n_head": 4}, {"n_layer": 6}),
        ("h", {"n_layer": 4}, {"n_layer": 6}),
        ("transformer.blocks", {"n_layers": 4}, {"n_layers": 6}),
        ("transformer.encoder.layers", {"num_layers": 4}, {"num_layers": 6}),
        ("bert.encoder.layer", {"num_hidden_layers": 4}, {"num_hidden_layers": 6}),
        ("model.decoder.layers", {"num_hidden_layers": 4}, {"num_hidden_layers": 6}),
        (
            "model.language_model.layers",
            {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}},
            {"text_config.num_hidden_layers": 6},
        ),
        (
            "model.vision_tower.encoder.layers",
            {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}},
            {"vision_config.num_hidden_layers": 6},
        ),
        (
            "model.visual.blocks",
            {"num_hidden_layers": 4, "vision_config": {"depth": 4}},
            {"vision_config.depth": 6},
        ),
        (
            "model.layers",
            {"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 4}},
            {"num_hidden_layers": 6, "text_config.num_hidden_layers": 6},
        ),
        (
            "model.layers",
            {"thinker_config": {"text_config": {"num_hidden_layers": 4}}},
            {"thinker_config.text_config.num_hidden_layers": 6},
        ),
        ("vit.encoder.layer", {"num_hidden_layers": 4}, {"num_hidden_layers": 6}),
        ("encoder.block", {"num_layers": 4, "num_decoder_layers": 4}, {"num_layers": 6}),
        ("decoder.block", {"num_layers": 4, "num_decoder_layers": 4}, {"num_decoder_layers": 6}),
        (
            "model.encoder.layers",
            {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
            {"encoder_layers": 6, "num_hidden_layers": 6},
        ),
        (
            "model.decoder.layers",
            {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
            {"decoder_layers": 6},
        ),
    ],
)
def test_the_number_of_layers_is_found_where_the_architecture_keeps_it(
    name: str, config: dict[str, Any], edits: dict[str, Any]
) -> None:
    assert rewritten(stack(REPEATED, 4, name=name), config) == (edits, ())


def test_a_number_that_is_another_is_a_note() -> None:
    edits, notes = rewritten(stack(REPEATED, 4), {"num_hidden_layers": 5})
    assert edits == {}
    (note,) = notes
    assert note == (
        "config.json: nothing says that model.layers has 4 layers; it has 6 now, which the config "
        "may have to say"
    )


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [
        ("model.layers", {"vocab_size": 4}, "num_hidden_layers"),
        ("bert.encoder.layer", {"vocab_size": 4}, "num_hidden_layers"),
        ("model.decoder.layers", {"vocab_size": 4}, "num_hidden_layers"),
        ("vit.encoder.layer", {"image_size": 8}, "num_hidden_layers"),
        (
            "model.language_model.layers",
            {"text_config": {"rope": {}}, "vision_config": {"num_hidden_layers": 4}},
            "text_config.num_hidden_layers",
        ),
        (
            "thinker.model.layers",
            {"thinker_config": {"text_config": {}, "vision_config": {}}},
            "thinker_config.text_config.num_hidden_layers",
        ),
        (
            "vision_model.encoder.layers",
            {"text_config": {}, "vision_config": {}},
            "vision_config.num_hidden_layers",
        ),
    ],
)
def test_a_number_that_is_left_to_the_class_is_added(
    name: str, config: dict[str, Any], key: str
) -> None:
    edits, notes = rewritten(stack(REPEATED, 4, name=name), config)
    assert edits == {key: 6}
    (note,) = notes
    assert note == (
        f"config.json: nothing says that {name} has 4 layers; it has 6 now, and {key} is added to "
        "say so"
    )
    assert rewritten(stack([3, 1, 2, 0], 4, name=name), config) == ({}, ())


def test_lists_by_layer_follow_a_number_that_is_left_to_the_class() -> None:
    config = {"layer_types": WAS, "layers": 4}
    edits, notes = rewritten(stack([1, 2, 3], 4), config)
    assert edits == {"num_hidden_layers": 3, "layer_types": WAS[1:]}
    assert notes[1:] == (
        "config.json: layers is 4, as many as there were layers; it is left as it is",
    )
    edits, notes = rewritten(stack([1, 0, 2, 3], 4), config)
    assert edits == {"layer_types": [SLIDING, FULL, SLIDING, FULL]}
    assert notes == ()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("decoder.block", {"is_encoder_decoder": True}),
        ("model.decoder.layers", {"encoder_layers": 4}),
        ("model.visual.blocks", {"text_config": {}}),
        ("vision.layers", {"a": {"vision_config": {}}, "b": {"vision_config": {}}}),
    ],
)
def test_a_number_that_could_stand_in_several_places_is_refused(
    name: str, config: dict[str, Any]
) -> None:
    with pytest.raises(PlanError, match=f"{name} gets 6 layers instead of 4, and the donor's conf"):
        rewritten(stack(REPEATED, 4, name=name), config)
    assert rewritten(stack([1, 0, 2, 3], 4, name=name), config) == ({}, ())


def test_without_a_config_there_is_nothing_to_say() -> None:
    assert rewritten(stack(REPEATED, 4), {}) == ({}, ())


def test_layers_that_stay_leave_the_config_as_it_is() -> None:
    config = {"num_hidden_layers": 3, "layer_types": [FULL, SLIDING, FULL]}
    assert rewritten(stack([0, 1, 2], 3), config) == ({}, ())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layer_types", WAS, [*WAS, SLIDING, FULL]),
        ("no_rope_layers", [1, 1, 1, 0], [1, 1, 1, 0, 1, 0]),
        ("num_kv_heads", [1, 2, 3, 4], [1, 2, 3, 4, 3, 4]),
        ("intermediate_size", [10, 20, 30, 40], [10, 20, 30, 40, 30, 40]),
        ("hybrid_override_pattern", "M-M*", "M-M*M*"),
        ("mlp_only_layers", [0, 3], [0, 3, 5]),
        ("mlp_only_layers", [], None),
        ("cross_attention_layers", [2], [2, 4]),
        ("attn_layer_indices", [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
        ("first_k_dense_replace", 1, None),
        ("max_window_layers", 4, 6),
        ("eos_token_id", [1, 2, 3, 4], None),
        ("architectures", ["A", "B", "C", "D"], None),
        ("image_mean", [0.5, 0.5, 0.5, 0.5], None),
        ("model_type", "abcd", None),
        ("hidden_size", 4, None),
        ("layer_types", [FULL, SLIDING], None),
    ],
)  # fmt: skip
def test_what_is_said_layer_by_layer_follows_the_layers(
    key: str, value: Any, expected: Any
) -> None:
    for path in ((), ("text_config",)):
        section = {"num_hidden_layers": 4, key: value}
        config = {path[0]: section} if path else section
        edits, notes = rewritten(stack(REPEATED, 4), config)
        prefix = f"{path[0]}." if path else ""
        assert edits.pop(f"{prefix}num_hidden_layers") == 6
        assert edits == ({} if expected is None else {f"{prefix}{key}": expected})
        assert notes == ()


def test_a_layer_brings_what_its_own_source_says_of_it() -> None:
    donor = {"num_hidden_layers": 2, "layer_types": [FULL, FULL], "mlp_only_layers": [0]}
    other = {
        "num_hidden_layers": 3,
        "layer_types": [SLIDING, FULL, SLIDING],
        "mlp_only_layers": [2],
    }
    edits, _ = rewritten(stack([0, 1, (1, 1), (1, 2)], 2, 3), donor, other)
    assert edits == {
        "num_hidden_layers": 4,
        "layer_types": [FULL, FULL, FULL, SLIDING],
        "mlp_only_layers": [0, 3],
    }


@pytest.mark.parametrize(
    ("said", "origin", "words"),
    [
        (
            {"first_k_dense_replace": 1},
            [0, 1, 0, 1],
            "first_k_dense_replace is 1, and the first lay",
        ),
        (
            {"num_kv_shared_layers": 2},
            [0, 1, 2],
            "num_kv_shared_layers is 2 and counts from the la",
        ),
        ({"full_attention_interval": 2}, [0, 1, 3], "full_attention_interval is 2: every 2 layers"),
        ({"model_type": "gemma2"}, [0, 1, 3], "model_type is gemma2: every 2 layers one is of ano"),
        (
            {"special_layers": [1, 3]},
            [0, 1, 2],
            "special_layers is [1, 3]: if these are layers, th",
        ),
    ],
)
def test_what_cannot_be_decided_is_a_note(
    said: dict[str, Any], origin: list[int], words: str
) -> None:
    edits, notes = rewritten(stack(origin, 5), {"num_hidden_layers": 5, **said})
    assert set(edits) == {"num_hidden_layers"}
    (note,) = notes
    assert note.startswith(f"config.json: {words}")
    assert note.endswith("; it is left as it is")


@pytest.mark.parametrize(
    ("said", "origin"),
    [
        ({"full_attention_interval": 2}, [0, 1, 2, 3, 2, 3]),
        ({"sliding_window_pattern": 2, "layer_types": [FULL] * 5}, [0, 1, 3]),
        ({"model_type": "gemma2", "layer_types": [FULL] * 5}, [0, 1, 3]),
        ({"decoder_sparse_step": 1}, [0, 1, 3]),
    ],
)
def test_a_pattern_that_still_holds_is_no_matter(said: dict[str, Any], origin: list[int]) -> None:
    assert rewritten(stack(origin, 5), {"num_hidden_layers": 5, **said})[1] == ()


@pytest.mark.parametrize(
    ("origin", "layers", "extra", "noted"),
    [
        ([0, 1, 2, 0, 1, 2], 6, 0, False),
        ([0, 1, 0, 1, 2, 3], 5, 1, False),
        ([0, 3, 1, 2], 3, 1, True),
    ],
)
def test_prediction_layers_are_not_counted(
    origin: list[int], layers: int, extra: int, *, noted: bool
) -> None:
    """DeepSeek stores a layer behind the last that `num_hidden_layers` leaves out."""
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    edits, notes = rewritten(stack(origin, 4), config)
    said = {**config, **edits}
    assert (said["num_hidden_layers"], said["num_nextn_predict_layers"]) == (layers, extra)
    assert bool(notes) is noted
