"""Merges through the ring of a CUDA device, and what a ring asks of it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest
import torch

import raymerge
from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.tile import Tile
from raymerge.kernels.torch_ring import DeviceTile, Ring
from raymerge.kernels.torch_streams import CudaStreams, pinned
from tests.checkpoints import fine_tune
from tests.conftest import METHOD_KNOBS, Place, shard_hashes
from tests.rings import SHARD_BYTES, hashes, ring_models, ring_plan, through_ring

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

MIB = 2**20


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("sources"))
    ring_models(place)
    return place


def of_cpu(recipe: Path, out: Path) -> dict[str, str]:
    raymerge.merge(recipe, out, engine="local", device="cpu", workers=2, shard_bytes=SHARD_BYTES)
    return shard_hashes(out)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
def test_bytes_are_the_cpu_s(sources: Place, tmp_path: Path, method: str, depth: int) -> None:
    recipe = sources.any_recipe(method)
    expected = of_cpu(recipe, tmp_path / "cpu")
    for tile in (2**14, 2**20):
        plan = ring_plan(recipe, tile)
        result = through_ring(plan, tmp_path / f"{tile}", depth=depth, device="cuda")
        assert hashes(result) == expected


def test_copies_go_on_beside_kernels() -> None:
    """As many tiles take less time through three slots than through one."""
    streams, elements, tiles = CudaStreams(torch.device("cuda")), 2**24, 12
    memory = [streams.memory(4 * elements) for _ in range(6)]

    def work(tile: Tile) -> int:
        assert isinstance(tile, DeviceTile)
        values = tile.sent[0].view(torch.float32)
        for _ in range(40):
            values = values * 1.0000001
        out = memory[3 + tile.first // elements % 3]
        tile.bring(values, torch.from_numpy(out).view(torch.float32))
        return -1

    def taken_s(ring: Ring) -> float:
        line = [
            Tile([memory[number % 3]], [DType.F32], number * elements, elements)
            for number in range(tiles)
        ]
        began_s = perf_counter()
        ring.run(line, work, lambda *_: None)
        return perf_counter() - began_s

    rings = [Ring(streams, depth) for depth in (1, 3)]
    alone_s, together_s = (min(taken_s(ring) for _ in range(4)) for ring in rings)
    assert together_s < alone_s


def test_a_device_that_is_full_gets_smaller_tiles(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    generator = torch.Generator().manual_seed(9)
    base = {"w": torch.randn((2**11, 2**11), generator=generator).to(torch.bfloat16)}
    for name, tensors in (("base", base), ("a", fine_tune(base, 1)), ("b", fine_tune(base, 2))):
        place.model(name, tensors)
    recipe = place.any_recipe("ties")
    expected = of_cpu(recipe, place / "cpu")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 128 * MIB  # eight float32 tiles of 2**22 elements
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        plan = ring_plan(recipe, 2**22)
        found = through_ring(plan, place / "out", depth=3, threads=1, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert hashes(found) == expected
    assert "cuda has no room for tiles of 4,194,304 elements" in caplog.text


def test_pinned_memory_is_exact_and_given_back() -> None:
    for _ in range(3):
        memory = pinned(3 * MIB + 1)
        assert memory.nbytes == 3 * MIB + 1
        assert torch.from_numpy(memory).is_pinned()
        piece = memory[5:]
        del memory
        assert torch.from_numpy(piece).is_pinned(), "as long as a part of it is in use"
        del piece
