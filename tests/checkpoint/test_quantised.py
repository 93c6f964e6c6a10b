from __future__ import annotations

from typing import Any

import pytest

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.quantised import quantisation

LAYER = "model.layers.0.mlp.down_proj"


def catalog(config: dict[str, Any], **types: DType) -> Catalog:
    tensors = {
        f"{LAYER}.{name}": TensorEntry(f"{LAYER}.{name}", dtype, (4, 4), "f", 0, 16)
        for name, dtype in {"bias": DType.BF16, **types}.items()
    }
    return Catalog(label="a", location="a", tensors=tensors, pins={}, config=config, side_files=())


def kinds(names: str, dtype: DType = DType.I32) -> dict[str, DType]:
    return dict.fromkeys(names.split(), dtype)


@pytest.mark.parametrize(
    ("types", "config", "expected"),
    [
        (kinds("qweight qzeros scales g_idx"), {}, f"GPTQ ({LAYER}.qweight with g_idx)"),
        (kinds("qweight qzeros scales"), {}, f"GPTQ or AWQ ({LAYER}.qweight with qzeros)"),
        (
            kinds("qweight qzeros scales"),
            {"quantization_config": {"quant_method": "awq"}},
            f"AWQ ({LAYER}.qweight with qzeros)",
        ),
        (
            {"weight": DType.F8_E4M3, "weight_scale_inv": DType.F32},
            {},
            f"block FP8 ({LAYER}.weight_scale_inv)",
        ),
        (
            {"weight": DType.F8_E4M3, "weight_scale": DType.F32},
            {},
            f"scaled codes ({LAYER}.weight_scale)",
        ),
        (kinds("weight_packed weight_scale"), {}, f"compressed-tensors ({LAYER}.weight_packed)"),
        (
            kinds("weight.absmax weight.quant_map weight.quant_state.bitsandbytes__nf4", DType.U8),
            {},
            f"bitsandbytes 4-bit ({LAYER}.weight.quant_state.bitsandbytes__nf4)",
        ),
        ({"weight": DType.I8, "SCB": DType.F32}, {}, f"bitsandbytes 8-bit ({LAYER}.SCB)"),
        (
            kinds("gate_up_proj_blocks gate_up_proj_scales", DType.U8),
            {},
            f"MXFP4 ({LAYER}.gate_up_proj_blocks with scales)",
        ),
        ({"weight": DType.F8_E5M2}, {}, f"F8_E5M2 codes ({LAYER}.weight)"),
        ({"weight": DType.F4}, {}, f"F4 codes ({LAYER}.weight)"),
        (
            {"weight": DType.BF16},
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config in config.json says fp8",
        ),
        (
            {"weight": DType.BF16},
            {"text_config": {"quantization_config": {"format": "pack-quantized"}}},
            "quantization_config in config.json says pack-quantized",
        ),
        (
            {"weight": DType.BF16},
            {"compression_config": {"bits": 4}},
            "compression_config in config.json says quantised",
        ),
    ],
)
def test_a_quantised_checkpoint_is_told_by_its_tensors_or_its_config(
    types: dict[str, DType],
    config: dict[str, Any],
    expected: str,
) -> None:
    assert quantisation(catalog(config, **types)) == expected


@pytest.mark.parametrize(
    ("types", "config"),
    [
        ({"weight": DType.BF16}, {}),
        ({"weight": DType.F32, "scales": DType.F32}, {}),
        ({"inv_freq_scales": DType.F32}, {}),
        ({"position_ids": DType.I64, "mask": DType.BOOL, "table": DType.U8}, {}),
        ({"weight": DType.BF16}, {"quantization_config": None}),
        ({"weight": DType.BF16}, {"quantization_config": {}}),
    ],
)
def test_plain_weights_are_not_taken_for_codes(
    types: dict[str, DType],
    config: dict[str, Any],
) -> None:
    assert quantisation(catalog(config, **types)) is None
