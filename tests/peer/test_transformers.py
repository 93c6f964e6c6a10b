"""transformers loads what comes out: no key missing or unexpected, and the oracle's logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.conftest import Place
from tests.peer.models import ARCHITECTURES, SEEING

PROMPT = torch.tensor([[3, 14, 15, 92, 65, 35, 8]])
WEIGHTS = {"a": 0.75, "b": 0.5}


def loaded(folder: Path, architecture: str) -> torch.nn.Module:
    """The model as transformers reads it, which has to know every tensor."""
    kind: Any = AutoModelForImageTextToText if architecture in SEEING else AutoModelForCausalLM
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    assert not report["mismatched_keys"], report
    model.eval()
    assert isinstance(model, torch.nn.Module)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_a_model_merged_by_the_oracle(
    architecture: str, family: Callable[[str], Path], tmp_path: Path
) -> None:
    models = family(architecture)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "merge_method": "task_arithmetic",
                "base_model": str(models / "base"),
                "models": [
                    {"model": str(models / name), "parameters": {"weight": weight}}
                    for name, weight in WEIGHTS.items()
                ],
            }
        )
    )
    Place(tmp_path).merged(recipe, "out")

    oracle = loaded(models / "base", architecture)
    base = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    merged = {name: tensor.double() for name, tensor in base.items()}
    for source, weight in WEIGHTS.items():
        tuned = loaded(models / source, architecture).state_dict()
        for name, tensor in base.items():
            if tensor.is_floating_point():
                merged[name] += weight * (tuned[name].double() - tensor.double())
    oracle.load_state_dict({name: merged[name].to(base[name].dtype) for name in base})

    with torch.no_grad():
        expected: Tensor = oracle(PROMPT).logits
        found: Tensor = loaded(tmp_path / "out", architecture)(PROMPT).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
