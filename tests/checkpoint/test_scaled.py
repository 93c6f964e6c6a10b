"""Which FP8 checkpoints can be undone, and how their scales lie on the codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.scaled import Blocks, scaled_codes
from raymerge.errors import SourceError
from tests.plans import catalog

W = "model.layers.0.mlp.up_proj.weight"
Shape = tuple[int, ...]


def coded(
    shape: Shape,
    scale: Shape,
    *,
    suffix: str = "_scale_inv",
    config: Mapping[str, Any] | None = None,
) -> Blocks | None:
    """How the scales lie on a weight of `shape`; None where the source is not undone."""
    tensors = {W: (DType.F8_E4M3, shape), W + suffix: (DType.F32, scale)}
    found = scaled_codes(catalog("a", tensors, config=config))
    return None if found is None else found.weights[W].blocks


def quantised(**settings: Any) -> dict[str, Any]:
    return {"quantization_config": settings}


@pytest.mark.parametrize(
    ("shape", "scale", "config", "block"),
    [
        ((300, 200), (3, 2), {}, (128, 128)),
        ((300, 200), (5, 4), quantised(weight_block_size=[64, 64]), (64, 64)),
        ((300, 200), (300, 1), {}, (1, 200)),
        ((300, 200), (300,), {}, (1, 200)),
        ((300, 200), (1,), {}, (300, 200)),
        ((300, 200), (), {}, (300, 200)),
        ((4, 300, 200), (4, 3, 2), {}, (128, 128)),
        ((4, 300, 200), (4, 1, 1), {}, (300, 200)),
        (
            (300, 200),
            (300, 4),
            quantised(config_groups={"g": {"weights": {"block_structure": [1, 64]}}}),
            (1, 64),
        ),
    ],
    ids=str,
)
def test_scales_lie_by_block_row_or_tensor(
    shape: Shape, scale: Shape, config: dict[str, Any], block: tuple[int, int]
) -> None:
    found = coded(shape, scale, config=config)
    assert found == Blocks(shape[-2], shape[-1], *block)


def test_a_scale_that_fits_in_no_way_is_refused() -> None:
    with pytest.raises(SourceError, match=r"_scale_inv of shape \[5, 4\] fits .* neither"):
        coded((300, 200), (5, 4))


@pytest.mark.parametrize(
    "config",
    [
        quantised(quant_method="gptq"),
        quantised(
            quant_method="compressed-tensors",
            config_groups={"g": {"weights": {"num_bits": 4, "type": "float"}}},
        ),
        quantised(
            quant_method="compressed-tensors",
            config_groups={"g": {"weights": {"num_bits": 8, "type": "int"}}},
        ),
    ],
    ids=str,
)
def test_another_scheme_is_not_undone(config: dict[str, Any]) -> None:
    assert coded((300, 200), (3, 2), config=config) is None


def test_codes_without_scales_are_not_undone() -> None:
    assert scaled_codes(catalog("a", {W: (DType.F8_E4M3, (4, 4))})) is None


def test_plain_weights_have_nothing_to_undo() -> None:
    assert scaled_codes(catalog("a")) is None


def test_scales_of_activations_are_served_too() -> None:
    tensors = {
        W: (DType.F8_E4M3, (4, 4)),
        W + "_scale": (DType.BF16, (4, 1)),
        "model.layers.0.mlp.up_proj.input_scale": (DType.F32, ()),
        "model.norm.weight": (DType.BF16, (4,)),
    }
    found = scaled_codes(catalog("a", tensors, config={"torch_dtype": "float16"}))
    assert found is not None
    assert found.served == {W + "_scale", "model.layers.0.mlp.up_proj.input_scale"}
    assert found.dtype is DType.F16
