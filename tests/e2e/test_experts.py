"""Mixtures of experts in two layouts merge with each other."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from tests.conftest import Place, read_tensors

EXPERTS, WIDE, HIDDEN = 4, 24, 40


def model(seed: int) -> dict[str, Tensor]:
    """A layer of separate experts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    tensors = {"model.layers.0.mlp.gate.weight": normal(EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        stem = f"model.layers.0.mlp.experts.{expert}"
        tensors |= {
            f"{stem}.gate_proj.weight": normal(WIDE, HIDDEN),
            f"{stem}.up_proj.weight": normal(WIDE, HIDDEN),
            f"{stem}.down_proj.weight": normal(HIDDEN, WIDE),
        }
    return tensors


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same layer with packed experts."""
    stem = "model.layers.0.mlp.experts"

    def stack(part: str) -> Tensor:
        return torch.stack([tensors[f"{stem}.{e}.{part}.weight"] for e in range(EXPERTS)])

    return {
        "model.layers.0.mlp.gate.weight": tensors["model.layers.0.mlp.gate.weight"],
        f"{stem}.gate_up_proj": torch.cat([stack("gate_proj"), stack("up_proj")], dim=1),
        f"{stem}.down_proj": stack("down_proj"),
    }


@pytest.mark.parametrize("donor_packed", [False, True], ids=["separate", "packed"])
@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "slerp"])
def test_a_source_in_the_other_layout_gives_the_same_bytes(
    place: Place, method: str, *, donor_packed: bool
) -> None:
    def in_layout(seed: int, *, as_packed: bool) -> dict[str, Tensor]:
        return packed(model(seed)) if as_packed else model(seed)

    outputs = []
    for mixed in (False, True):
        place.model("base", in_layout(0, as_packed=donor_packed))
        place.model("a", in_layout(1, as_packed=donor_packed != mixed))
        recipe = place.recipe(
            method, ["a"], base="base", parameters={"weight": 0.5, "density": 0.5, "t": 0.3}
        )
        outputs.append(place.merged(recipe, f"out-{mixed}"))
    same, mixed_in = outputs

    assert set(same) == set(mixed_in)
    assert all(torch.equal(same[name], mixed_in[name]) for name in same)


def test_tiles_change_nothing(place: Place) -> None:
    import raymerge

    place.model("base", packed(model(0)))
    place.model("a", model(1))
    file = place / "ties.yaml"
    file.write_text(
        json.dumps(
            {
                "merge_method": "ties",
                "base_model": str(place / "base"),
                "models": [str(place / "a")],
                "parameters": {"weight": 1.0, "density": 0.3},
            }
        )
    )
    merged = []
    for tile in (256, 1024, None):
        raymerge.merge(file, place / f"out-{tile}", tile_elements=tile, engine="local")
        merged.append(read_tensors(place / f"out-{tile}"))
    for other in merged[1:]:
        assert all(torch.equal(merged[0][name], other[name]) for name in other)
