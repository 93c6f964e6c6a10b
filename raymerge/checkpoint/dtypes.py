"""The element types a safetensors header can name, and torch's rules between them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import prod


class DType(StrEnum):
    """An element type, by its name in a safetensors header. Declared in the format's own order.

    The safetensors library writes tensors in descending order of this list, so that the widest
    elements come first and every tensor is aligned.
    """

    BOOL = "BOOL"
    F4 = "F4"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    U8 = "U8"
    I8 = "I8"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3 = "F8_E4M3"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    C64 = "C64"
    F64 = "F64"
    I64 = "I64"
    U64 = "U64"

    @property
    def bits(self) -> int:
        """Width of one element."""
        return _BITS[self]

    @property
    def mergeable(self) -> bool:
        """Whether arithmetic on this type is a merge: the plain floating-point types."""
        return self in _MERGEABLE

    @property
    def torch_name(self) -> str:
        """Name of the type in torch and in a config.json: `bfloat16`."""
        return _TORCH_NAMES[self]

    def num_bytes(self, shape: Iterable[int]) -> int:
        """Bytes of a dense tensor of `shape`.

        Raises:
            ValueError: The elements do not fill whole bytes (F4 and F6 are packed).
        """
        bits = prod(shape) * _BITS[self]
        if bits % 8:
            raise ValueError(f"{self} elements of shape {tuple(shape)} do not fill whole bytes")
        return bits // 8


_BITS = {
    dtype: int(bits)
    for bits, names in {
        "4": "F4",
        "6": "F6_E2M3 F6_E3M2",
        "8": "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        "16": "I16 U16 F16 BF16",
        "32": "I32 U32 F32",
        "64": "C64 F64 I64 U64",
    }.items()
    for dtype in map(DType, names.split())
}
_MERGEABLE = frozenset({DType.F16, DType.BF16, DType.F32, DType.F64})
_TORCH_NAMES = {
    DType.BOOL: "bool",
    DType.F4: "float4_e2m1fn_x2",
    DType.F6_E2M3: "float6_e2m3",
    DType.F6_E3M2: "float6_e3m2",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F8_E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
    DType.I16: "int16",
    DType.U16: "uint16",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I32: "int32",
    DType.U32: "uint32",
    DType.F32: "float32",
    DType.C64: "complex64",
    DType.F64: "float64",
    DType.I64: "int64",
    DType.U64: "uint64",
}
OUTPUT_DTYPES = {name: dtype for dtype, name in _TORCH_NAMES.items() if dtype in _MERGEABLE}
"""What a recipe's `dtype` may name: `float16`, `bfloat16`, `float32`, `float64`."""


def promote(dtypes: Iterable[DType]) -> DType:
    """torch's promotion over floating-point types: the wider one, and F16 with BF16 gives F32."""
    kinds = set(dtypes)
    if not kinds or not kinds <= _MERGEABLE:
        raise ValueError(f"no promotion over {sorted(kinds)}: only floating-point types have one")
    for wide in (DType.F64, DType.F32):
        if wide in kinds:
            return wide
    return kinds.pop() if len(kinds) == 1 else DType.F32
