"""Every recipe of `cases.yaml`, run by both and compared: names, shapes, dtypes, values, config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.conftest import Place, read_tensors
from tests.peer.mergekit import Mergekit

pytestmark = pytest.mark.peer
CASES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text())
SOURCES = ("base", "a", "b", "c")
TOLERANCE = 1e-6
CONFIG_KEYS = ("num_hidden_layers", "n_layer", "vocab_size", "hidden_size", "tie_word_embeddings")
Model = dict[str, Tensor]


@pytest.mark.parametrize("name", CASES)
def test_mergekit_gives_the_same(
    name: str, mergekit: Mergekit, family: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    models = family(case["of"])
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    recipe = _written(tmp_path / "ours.yaml", case["recipe"], models)
    Place(tmp_path).merged(recipe, "ours")
    recipe = _written(tmp_path / "theirs.yaml", case["recipe"], models, **case.get("theirs", {}))
    failed = mergekit.run("mergekit-yaml", recipe, theirs, "--quiet", *case.get("flags", ()))
    assert not failed

    found, expected = read_tensors(ours), _under_our_names(read_tensors(theirs), case["of"])
    lost = LOST.get(case["of"], ())
    assert {n for n in found if not n.startswith(lost)} == expected.keys()
    sources = [read_tensors(models / source) for source in SOURCES]
    if case.get("within") == "drawn":
        _compare_draws(found, expected, sources)
    else:
        assert _apart(found, expected, sources) <= case.get("apart", 0)
    _compare_configs(ours, theirs)


LOST: Mapping[str, tuple[str, ...]] = {"llava": ("language_model.",)}
"""What mergekit leaves out: it looks for tensors under newer names than the files'."""


def _under_our_names(theirs: Model, architecture: str) -> Model:
    """mergekit's tensors under the files' own names, which raymerge keeps."""
    if architecture == "llava":
        return {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
    if architecture != "mixtral":
        return theirs
    renamed: Model = {}
    for name, tensor in theirs.items():
        stem = name.replace(".mlp.", ".block_sparse_moe.")
        if name.endswith("experts.gate_up_proj"):
            for expert, (gate, up) in enumerate(half.chunk(2) for half in tensor):
                prefix = f"{stem.removesuffix('gate_up_proj')}{expert}"
                renamed |= {f"{prefix}.w1.weight": gate, f"{prefix}.w3.weight": up}
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                renamed[f"{stem.removesuffix('down_proj')}{expert}.w2.weight"] = down
        else:
            renamed[stem] = tensor
    return renamed


def _written(path: Path, recipe: dict[str, Any], models: Path, **knobs: Any) -> Path:
    recipe = _placed(deepcopy(recipe), models)
    if knobs:
        recipe["parameters"] |= knobs
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _placed(node: Any, models: Path) -> Any:
    """The recipe with folders in place of `base`, `a`, `b` and `c`.

    A list of names is short for a list of models: mergekit wants the key.
    """
    if isinstance(node, dict):
        named = [{"model": m} if isinstance(m, str) else m for m in node.get("models", ())]
        node = node | ({"models": named} if named else {})
        return {key: _placed(value, models) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(item, models) for item in node]
    if isinstance(node, str) and node in SOURCES:
        return str(models / node)
    return node


def _apart(found: Model, expected: Model, sources: list[Model]) -> int:
    """Entries that differ by more than the tolerance and one step of the output's precision."""
    number = 0
    for name, theirs in expected.items():
        tensor = found[name]
        assert (tensor.dtype, tensor.shape) == (theirs.dtype, theirs.shape), name
        largest = max((float(s[name].abs().max()) for s in sources if name in s), default=1.0)
        tolerance = TOLERANCE * max(1.0, largest)
        if tensor.dtype is not torch.float32:
            tolerance += torch.finfo(tensor.dtype).eps * max(1.0, largest)
        apart = (tensor.double() - theirs.double()).abs() > tolerance
        number += int(apart.sum())
    return number


def _compare_draws(found: Model, expected: Model, sources: list[Model]) -> None:
    base = sources[0]
    moved = [torch.cat([(m[n] != base[n]).flatten() for n in base]) for m in (found, expected)]
    norms = [
        torch.cat([(m[n] - base[n]).flatten() for n in base]).norm() for m in (found, expected)
    ]
    shares = [float(each.double().mean()) for each in moved]
    # Some 40,000 entries: five standard deviations of a share are 0.0125 at most.
    assert abs(shares[0] - shares[1]) < 0.02
    assert abs(norms[0] / norms[1] - 1) < 0.03


def _compare_configs(ours: Path, theirs: Path) -> None:
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, theirs)]
    for key in CONFIG_KEYS:
        assert configs[0].get(key) == configs[1].get(key), key
