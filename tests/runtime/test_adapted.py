"""Adapted tensors as they are read: exact figures, and the same bytes in whatever tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymerge.checkpoint.adapter import read_adapter
from raymerge.checkpoint.catalog import read_catalog
from raymerge.plan.adapted import COPIED_ELEMENTS, Adapted, Replaced
from raymerge.plan.adapters import adapt
from raymerge.plan.graph import Derived, PlannedSource, Read
from raymerge.plan.views import views
from raymerge.recipe import loads
from raymerge.runtime.derived import derived_filler
from raymerge.runtime.readers import Readers
from raymerge.storage.posix import PosixFolder
from tests.adapters import adapted, factors, write_adapter
from tests.checkpoints import write_checkpoint
from tests.conftest import raw

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = "m.weight"


def derived(
    tmp_path: Path, model: dict[str, Tensor], adapter: dict[str, Tensor], **config: Any
) -> tuple[dict[str, Derived], Readers]:
    """What `x+adapter` makes of its tensors, and the open files to read them from."""
    write_checkpoint(tmp_path / "x", model)
    write_adapter(tmp_path / "y", adapter, **config)
    text = f"merge_method: passthrough\nmodels: [{tmp_path}/x+{tmp_path}/y]"
    catalogs = [
        read_catalog(PosixFolder(tmp_path / "x"), label="x+y"),
        read_adapter(PosixFolder(tmp_path / "y"), label="x+y adapter"),
    ]
    (view,) = adapt(loads(text), catalogs, views(catalogs)).views
    sources = [
        PlannedSource(
            label=one.label,
            location=one.location,
            revision=None,
            pins=one.pins,
            side_files=(),
            tensor_bytes=0,
        )
        for one in catalogs
    ]
    found = {name: one for name, one in view.tensors.items() if isinstance(one, Derived)}
    return found, Readers(sources)


def fill(one: Derived, readers: Readers, tile: int | None = None) -> tuple[bytes, int]:
    """All bytes of a tensor, in tiles of so many elements, and the bytes read for them."""
    width = one.dtype.bits // 8
    nbytes = one.num_elements * width
    step = nbytes if tile is None else tile * width
    out = np.zeros(nbytes, np.uint8)
    filler = derived_filler(one, readers)
    num_read = 0
    for start in range(0, nbytes, step):
        num_read += filler.fill(out[start : start + step], start)
    return out.tobytes(), num_read


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_adapter", DTYPES)
@pytest.mark.parametrize("rank", [1, 4, 7, 16])
def test_it_is_the_base_plus_the_scaled_product(
    tmp_path: Path, dtype: torch.dtype, of_adapter: torch.dtype, rank: int
) -> None:
    base = draw(37, 91, dtype=dtype)
    drawn = factors({"m": base.shape}, rank=rank, dtype=of_adapter)
    found, readers = derived(tmp_path, {NAME: base}, drawn, r=rank)
    expected = adapted(base, drawn["m.lora_A.weight"], drawn["m.lora_B.weight"])

    content, num_read = fill(found[NAME], readers)
    assert content == raw(expected)
    assert num_read == found[NAME].read_bytes


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "transposed": {"fan_in_fan_out": True},
    "magnitudes": {"use_dora": True},
    "transposed, magnitudes": {"fan_in_fan_out": True, "use_dora": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(40, 100), (3, 3000), (3000, 3), (64, 64)])
def test_tiles_change_nothing(tmp_path: Path, form: str, shape: tuple[int, int]) -> None:
    config = FORMS[form]
    transposed = bool(config.get("fan_in_fan_out"))
    base = draw(*shape)
    drawn = factors({"m": reversed(shape) if transposed else shape}, seed=2)
    magnitude = None
    if config.get("use_dora"):
        magnitude = drawn["m.lora_magnitude_vector"] = 1 + draw(shape[transposed], seed=3)
    found, readers = derived(tmp_path, {NAME: base}, drawn, **config)
    expected = adapted(
        base,
        drawn["m.lora_A.weight"],
        drawn["m.lora_B.weight"],
        rank_stabilised=bool(config.get("use_rslora")),
        magnitude=magnitude,
        transposed=transposed,
    )

    whole, num_read = fill(found[NAME], readers)
    assert num_read == found[NAME].read_bytes
    for tile in (256, 512, 2560, 2**16):
        assert fill(found[NAME], readers, tile)[0] == whole
    assert whole == raw(expected)


def test_an_embeddings_factors_are_transposed(tmp_path: Path) -> None:
    base = draw(50, 16)
    a, b = draw(4, 50, seed=2), draw(16, 4, seed=3)
    named = {"m.lora_embedding_A": a, "m.lora_embedding_B": b}
    found, readers = derived(tmp_path, {NAME: base}, named)
    assert fill(found[NAME], readers)[0] == raw(adapted(base, a, b, transposed=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_what_the_adapter_holds_whole_comes_in_the_models_dtype(
    tmp_path: Path, dtype: torch.dtype, stored: torch.dtype
) -> None:
    base, own = draw(30, 100, dtype=dtype), -draw(30, 100, seed=2, dtype=stored)
    own[0, :2] = torch.tensor([0.0, -0.0], dtype=stored)
    found, readers = derived(tmp_path, {NAME: base}, {"m.modules_to_save.default.weight": own})
    assert isinstance(found[NAME], Replaced)
    for tile in (None, 256):
        assert fill(found[NAME], readers, tile)[0] == raw(own.to(dtype))


def test_factors_may_come_on_top_of_a_base_that_the_adapter_holds(tmp_path: Path) -> None:
    base, own = draw(20, 30, dtype=torch.bfloat16), draw(20, 30, seed=2)
    drawn = factors({"m": base.shape})
    named = {**drawn, "m.base_layer.weight": own}
    found, readers = derived(tmp_path, {NAME: base}, named)
    one = found[NAME]
    assert isinstance(one, Adapted)
    assert isinstance(one.base, Replaced)
    assert one.how == "(the adapter's) + 2 B@A (rank 4)"
    expected = adapted(own.bfloat16(), drawn["m.lora_A.weight"], drawn["m.lora_B.weight"])
    assert fill(one, readers)[0] == raw(expected)


def test_scratch_is_charged_for_what_stays_and_what_passes() -> None:
    # Of 7B's widest matrix at rank 64: A and B are 10 MB of float32.
    from raymerge.checkpoint.dtypes import DType
    from raymerge.checkpoint.header import TensorEntry

    def read(dtype: DType, *shape: int) -> Read:
        return Read(0, TensorEntry("t", dtype, shape, "f", 0, dtype.num_bytes(shape)))

    base, a, b = (
        read(DType.BF16, 11008, 4096),
        read(DType.F32, 64, 4096),
        read(DType.F32, 11008, 64),
    )
    one = Adapted(
        source=0, name="t", dtype=DType.BF16, shape=base.shape, reads=(base, a, b), base=base,
        a=a, b=b, magnitude=None, rank=64, scaling=1.0, transposed=False,
    )  # fmt: skip
    assert one.scratch_bytes(2**18) == 8 * (64 * 4096 + 11008 * 64)
    own = Replaced(
        source=0, name="t", dtype=DType.BF16, shape=(8, 8), reads=(read(DType.F32, 8, 8),)
    )
    assert own.scratch_bytes(2**18) == 4 * COPIED_ELEMENTS
