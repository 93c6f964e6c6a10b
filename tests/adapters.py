"""Small LoRA adapters for tests, named as PEFT does, and a plain oracle of what they make."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "bias": "none",
    "init_lora_weights": True,
}
Floats = npt.NDArray[np.float64]


def write_adapter(path: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """Write an adapter whose tensors are named as PEFT does, but for the prefix."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    stored = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return path


def factors(
    shapes: Mapping[str, Iterable[int]],
    *,
    seed: int = 0,
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A and B for every module, whose matrices are (outputs, inputs), by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for module, (outputs, inputs) in shapes.items():
        a, b = (torch.randn(s, generator=generator) for s in ((rank, inputs), (outputs, rank)))
        drawn[f"{module}.lora_A.weight"] = (a * 0.1).to(dtype)
        drawn[f"{module}.lora_B.weight"] = (b * 0.1).to(dtype)
    return drawn


def modules_of(tensors: Mapping[str, Tensor], *endings: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the modules whose names end so."""
    return {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.endswith(tuple(f"{ending}.weight" for ending in endings))
    }


def adapted(
    base: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 8,
    rank_stabilised: bool = False,
    magnitude: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """One matrix with its adapter, element by element in float64, in the base's dtype."""
    rank = a.shape[0]
    scaling = alpha / (math.sqrt(rank) if rank_stabilised else rank)
    left, right = b.double().numpy(), a.double().numpy()
    product: Floats = np.zeros((b.shape[0], a.shape[1]))
    for k in range(rank):
        product = product + left[:, k : k + 1] * right[k]
    wide = base.double().numpy()
    total: Floats = (wide.T if transposed else wide) + scaling * product
    if magnitude is not None:
        lengths = np.sqrt([sum(float(value) ** 2 for value in row) for row in total])
        total = (magnitude.double().numpy() / lengths)[:, None] * total
    total = total.T if transposed else total
    return torch.from_numpy(np.ascontiguousarray(total.astype(np.float32))).to(base.dtype)


def with_adapter(
    model: Mapping[str, Tensor], adapter: Mapping[str, Tensor], **how: Any
) -> dict[str, Tensor]:
    """A model with every pair of factors of an adapter added."""
    merged = dict(model)
    for name in adapter:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            a, b = adapter[name], adapter[f"{module}.lora_B.weight"]
            merged[f"{module}.weight"] = adapted(model[f"{module}.weight"], a, b, **how)
    return merged
