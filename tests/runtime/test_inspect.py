"""An inspection's figures against plain numpy, whatever each source has of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import raymerge
from raymerge.errors import PlanError, SourceError
from raymerge.runtime.inspection import GroupFigures, Inspection
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place


def inspected(place: Place, *sources: str, base: str | None = None, workers: int = 2) -> Inspection:
    paths = [place / source for source in sources]
    return raymerge.inspect(*paths, base=place / base if base else None, workers=workers)


def wide(
    tensors: Mapping[str, Tensor], names: list[str]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Some tensors as one float32 vector, in float64."""
    return np.concatenate([tensors[name].float().numpy().ravel() for name in names]).astype(float)


def group(found: Inspection, name: str) -> GroupFigures:
    (only,) = (one for one in found.groups if one.name == name)
    return only


def kinds(found: Inspection) -> list[str]:
    return [finding.kind for finding in found.findings]


# --- figures -------------------------------------------------------------------------------------


def test_every_figure_is_numpy_s_in_total_and_by_layer(place: Place) -> None:
    base = place.llamas()
    a, b = fine_tune(base, 1), fine_tune(base, 2)
    found = inspected(place, "a", "b", base="base")

    layer = [name for name in base if name.startswith("model.layers.1.")]
    for figures, names in ((found.total, list(base)), (group(found, "model.layers.1"), layer)):
        start = wide(base, names)
        deltas = [(wide(one, names) - start).astype(np.float32).astype(float) for one in (a, b)]
        for one, delta in zip(figures.sources, deltas, strict=True):
            assert one.parameters == len(start) == figures.parameters
            assert one.tensors == len(names) == figures.tensors
            assert one.norm == pytest.approx(np.linalg.norm(delta), rel=1e-12)
            assert one.norm_ratio == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(start))
            assert one.max_delta == abs(delta).max()
            assert one.unchanged_share == (delta == 0).mean()
            assert one.large_share == (abs(delta) > np.float32(0.03)).mean()
        (pair,) = figures.pairs
        x, y = deltas
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert pair.cosine == pytest.approx(cosine, rel=1e-9)
        assert pair.sign_conflict_share == (x * y < 0).mean()
        assert pair.both_changed_share == ((x != 0) & (y != 0)).mean()
        assert pair.distance is None


def test_without_a_base_the_weights_are_compared(place: Place) -> None:
    base = place.llamas()
    names = list(base)
    one, other = (wide(fine_tune(base, seed), names) for seed in (1, 2))
    found = inspected(place, "a", "b")

    (pair,) = found.total.pairs
    norms = np.linalg.norm(one), np.linalg.norm(other)
    assert found.base is None
    assert pair.cosine == pytest.approx(one @ other / norms[0] / norms[1], rel=1e-9)
    assert pair.distance == pytest.approx(2 * np.linalg.norm(one - other) / sum(norms), rel=1e-6)
    assert pair.sign_conflict_share is None
    assert found.total.sources[0].norm == pytest.approx(norms[0])
    assert found.total.sources[0].norm_ratio is None


def test_groups_are_the_embedding_the_layers_the_rest_and_the_head(place: Place) -> None:
    base = place.llamas(layers=11)
    found = inspected(place, "a", "b", base="base")

    layers = [f"model.layers.{i}" for i in range(11)]
    assert [one.name for one in found.groups] == ["embeddings", *layers, "other", "head"]
    assert [(one.stack, one.layer) for one in found.groups[1:3]] == [
        ("model.layers", 0),
        ("model.layers", 1),
    ]
    assert sum(one.tensors for one in found.groups) == len(base) == found.total.tensors


def test_threads_change_no_digit(place: Place) -> None:
    place.llamas(3, layers=4)
    one, many = (
        inspected(place, "a", "b", "c", base="base", workers=workers).as_json()
        for workers in (1, 5)
    )
    del one["seconds"], many["seconds"]

    assert one == many


def test_every_file_is_read_once(place: Place) -> None:
    base = place.llamas()

    found = inspected(place, "a", "b", base="base")
    assert found.bytes_read == 3 * sum(tensor.nbytes for tensor in base.values())


# --- sources that do not have the same tensors ---------------------------------------------------


def test_what_cannot_be_compared_is_listed_and_the_rest_is_compared(place: Place) -> None:
    base = place.llamas() | {"model.steps": torch.arange(3)}
    place.model("base", base)
    a, b = fine_tune(base, 1), fine_tune(base, 2)
    longer = torch.zeros(40, 16, dtype=torch.bfloat16)
    a["model.embed_tokens.weight"] = longer
    a["model.vision.weight"] = longer.clone()
    del b["model.norm.weight"]
    place.model("a", a)
    place.model("b", b)
    found = inspected(place, "a", "b", base="base")

    reasons = {(one.source, one.tensor): one.reason for one in found.uncompared}
    assert reasons == {
        ("a", "model.embed_tokens.weight"): "its shape is [40, 16], that of base is [32, 16]",
        ("a", "model.vision.weight"): "not in the base",
        ("b", "model.norm.weight"): "not there; base has it",
        ("base", "model.steps"): "holds I64 values, which are not weights",
    }
    assert [one.tensors for one in found.total.sources] == [len(base) - 2, len(base) - 2]
    shared = [n for n in base if n in a and n in b and a[n].shape == b[n].shape == base[n].shape]
    shared = [name for name in shared if base[name].is_floating_point()]
    one, other = (
        (wide(each, shared) - wide(base, shared)).astype(np.float32).astype(float)
        for each in (a, b)
    )
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert found.total.pairs[0].cosine == pytest.approx(cosine, rel=1e-9)
    assert "vocabulary" in kinds(found)
    assert kinds(found).count("uncompared") == 3


def test_nan_is_named_and_in_no_figure(place: Place) -> None:
    base = place.llamas()
    broken = fine_tune(base, 2)
    broken["model.norm.weight"][3] = torch.nan
    place.model("b", broken)
    found = inspected(place, "a", "b", base="base")

    (one,) = found.uncompared
    assert (one.source, one.tensor, one.reason) == ("b", "model.norm.weight", "holds NaN or Inf")
    assert found.total.tensors == len(base) - 1
    assert found.findings[0].kind == "not_finite"


# --- what it means -------------------------------------------------------------------------------


def models(place: Place, **tensors: Mapping[str, Tensor]) -> None:
    for name, held in tensors.items():
        place.model(name, held, config=llama_config(held))


def moved(tensors: Mapping[str, Tensor], seed: int, scale: float) -> dict[str, Tensor]:
    return fine_tune(tensors, seed, scale)


def test_fine_tunes_of_their_base_raise_no_warning(place: Place) -> None:
    base = tiny_llama_tensors(0, dtype=torch.float32)
    models(place, base=base, a=moved(base, 1, 0.002), b=moved(base, 2, 0.002))

    assert kinds(inspected(place, "a", "b", base="base")) == []


def test_a_stranger_as_a_base_is_told(place: Place) -> None:
    """Norms near 1 are in every model; over the matrices a stranger is 1.4 away."""
    base = tiny_llama_tensors(0, dtype=torch.float32)
    stranger = tiny_llama_tensors(9, dtype=torch.float32)
    models(place, base=stranger, a=moved(base, 1, 0.002))
    found = inspected(place, "a", base="base")

    assert found.findings[0].kind == "wrong_base"
    assert found.findings[0].severity == "warning"
    assert "1.4" in found.findings[0].message
    assert (found.total.sources[0].norm_ratio or 1) < 0.3


def test_deltas_with_one_offset_are_told(place: Place) -> None:
    base = tiny_llama_tensors(0, dtype=torch.float32)
    instruct = moved(base, 5, 0.005)
    models(place, base=base, a=moved(instruct, 1, 0.001), b=moved(instruct, 2, 0.001))
    found = inspected(place, "a", "b", base="base")

    assert found.findings[0].kind == "shared_offset"
    # Of 0.005 shared and 0.001 apart.
    assert "5." in found.findings[0].message or "4.9" in found.findings[0].message


def test_equal_sources_are_told(place: Place) -> None:
    base = tiny_llama_tensors(0, dtype=torch.float32)
    tuned = moved(base, 1, 0.002)
    models(place, base=base, a=tuned, b=tuned, same=base)

    assert kinds(inspected(place, "a", "b", base="base")) == ["same_weights"]
    assert kinds(inspected(place, "a", "b")) == ["same_weights"]
    assert kinds(inspected(place, "same", base="base")) == ["same_weights"]


def test_strangers_are_told_without_a_base(place: Place) -> None:
    base = tiny_llama_tensors(0, dtype=torch.float32)
    models(place, a=base, b=tiny_llama_tensors(9, dtype=torch.float32), c=moved(base, 1, 0.002))

    assert kinds(inspected(place, "a", "b")) == ["trained_apart"]
    assert kinds(inspected(place, "a", "c")) == []


def test_large_deltas_are_told_with_what_they_mean_for_dare(place: Place) -> None:
    base = tiny_llama_tensors(0, dtype=torch.float32)
    tuned = moved(base, 1, 0.002)
    tuned["model.norm.weight"][0] += 0.5
    models(place, base=base, a=tuned)
    (finding,) = inspected(place, "a", base="base").findings

    assert (finding.kind, finding.severity) == ("large_deltas", "note")
    assert "DARE" in finding.message
    assert "arXiv:2410.09344" in finding.message


def test_quantised_sources_are_named(place: Place) -> None:
    base = place.llamas()
    codes = dict(fine_tune(base, 1))
    name = "model.layers.0.mlp.up_proj.weight"
    codes[name] = codes[name].to(torch.float8_e4m3fn)
    place.model("a", codes)
    found = inspected(place, "a", base="base")

    assert (found.findings[0].kind, found.findings[0].severity) == ("quantised", "warning")
    assert {one.tensor for one in found.uncompared} == {name}
    assert (found.sources[1].quantisation is not None, found.sources[1].widened) == (True, False)


def test_codes_are_compared_as_what_they_stand_for(place: Place) -> None:
    base = place.llamas()
    codes, meant = dict(fine_tune(base, 1)), dict(fine_tune(base, 1))
    name = "model.layers.0.mlp.up_proj.weight"
    codes[name] = codes[name].to(torch.float8_e4m3fn)
    meant[name] = (codes[name].float() * 0.5).to(base[name].dtype)
    codes[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
    place.model("a", codes)
    found = inspected(place, "a", base="base")
    place.model("a", meant)
    expected = inspected(place, "a", base="base")

    assert found.total == expected.total
    assert not found.uncompared
    assert next(one for one in found.findings if one.kind == "quantised").severity == "note"
    assert found.sources[1].widened


def test_experts_are_compared_in_one_layout(place: Place) -> None:
    stem = "model.layers.0.mlp.experts"
    torch.manual_seed(0)
    parts = [torch.randn(4, 6, 8), torch.randn(4, 6, 8), torch.randn(4, 8, 6)]
    names = ("gate_proj", "up_proj", "down_proj")
    separate = {
        f"{stem}.{expert}.{name}.weight": part[expert].clone()
        for name, part in zip(names, parts, strict=True)
        for expert in range(4)
    }
    packed = {f"{stem}.gate_up_proj": torch.cat(parts[:2], 1), f"{stem}.down_proj": parts[2]}
    for name, tensors in (("base", moved(separate, 1, 0.01)), ("a", separate), ("b", packed)):
        place.model(name, tensors, config={})
    found = inspected(place, "a", "b", base="base")

    assert not found.uncompared
    assert found.total.pairs[0].cosine == pytest.approx(1)


def test_small_files_that_differ_are_told(place: Place) -> None:
    base = tiny_llama_tensors(0, dtype=torch.float32)
    models(place, base=base, a=moved(base, 1, 0.002), b=moved(base, 2, 0.002))
    (place / "a" / "tokenizer.json").write_text("{}")
    (place / "a" / "chat_template.jinja").write_text("{{ a }}")
    (place / "b" / "tokenizer_config.json").write_text('{"chat_template": "{{ a }}"}')
    config = llama_config(base, vocab_size=33, rope_theta=5)
    place.model("b", moved(base, 2, 0.002), config=config)
    found = inspected(place, "a", "b", base="base")

    assert kinds(found) == ["vocabulary", "tokenizer", "chat_template"]
    assert any("rope_theta" in line for line in found.differences)


def test_a_chat_template_is_the_same_wherever_it_is_kept(place: Place) -> None:
    place.llamas()
    (place / "a" / "chat_template.jinja").write_text("{{ a }}")
    (place / "b" / "tokenizer_config.json").write_text('{"chat_template": "{{ a }}"}')
    (place / "base" / "chat_template.json").write_text('{"chat_template": "{{ a }}"}')
    found = inspected(place, "a", "b", base="base")

    assert "chat_template" not in kinds(found)
    assert all(one.chat_template == two.chat_template for one, two in pairwise(found.sources))
    assert found.sources[0].chat_template is not None


# --- what is refused -----------------------------------------------------------------------------


def test_nothing_to_compare_and_one_thing_twice_are_refused(place: Place) -> None:
    place.llamas()
    with pytest.raises(PlanError, match="nothing to compare"):
        inspected(place, "a")
    with pytest.raises(PlanError, match="given twice"):
        inspected(place, "a", "a")
    with pytest.raises(PlanError, match="given twice"):
        inspected(place, "a", "base", base="base")
    with pytest.raises(PlanError, match="there is no source"):
        raymerge.inspect()


def test_malformed_sources_are_refused_as_by_a_merge(place: Place) -> None:
    place.llamas()
    shard = next((place / "a").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-3])

    with pytest.raises(SourceError, match="3 are missing"):
        inspected(place, "a", "b", base="base")
