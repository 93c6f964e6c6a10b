"""What each stage of a tile's way takes alone: read, send, compute, bring back, write and hash."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymerge.kernels.constants import HIGH_BINS, LOW_COLUMNS
from raymerge.kernels.delta import BITS
from raymerge.kernels.feed import unpinned
from raymerge.kernels.reduce import new_sums, num_pairs
from raymerge.kernels.tile import DeltaPass, Tile
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.kernels.torch_ring import DeviceTile
from raymerge.kernels.torch_streams import streams_of
from raymerge.runtime.hashing import unit_hash
from raymerge.runtime.inputs import Arena, Inputs
from raymerge.runtime.readers import Readers
from raymerge.runtime.settings import run_settings
from raymerge.runtime.tensor import TensorMerge
from raymerge.storage.posix import PosixShard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from raymerge.plan.build import Plan

GB = 1e9
DEVICE_COPY = "copy on the device"
"""What the others are held against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, done again and again on the same tile."""

    name: str
    num_bytes: int
    """Of what it takes in, the output's where it brings that back."""
    seconds: float
    """The best of the repeats: what else goes on here only ever takes time."""

    @property
    def gbps(self) -> float:
        """GB/s."""
        return self.num_bytes / self.seconds / GB


class Stages:
    """The stages of one tile of a plan's largest tensor, which a trimmed method merges.

    Args:
        plan: Of such a merge.
        device: As torch calls it.
        repeat: Times that each is done after the first, which is not counted.
    """

    def __init__(self, plan: Plan, device: str, repeat: int) -> None:
        self._repeat = repeat
        self._streams = streams_of(device)
        self._device = torch.device(device)
        self._kernels = TorchKernels(device)
        settings = run_settings(plan, "", "cpu")
        node = max(plan.nodes, key=lambda node: node.slot.nbytes)
        self._readers = Readers(settings.sources)
        self._inputs = Inputs(
            node,
            self._readers,
            Arena(self._streams.memory),
            settings.budget,
            stop=Event(),
            on_read=lambda _: None,
        )
        figures = TensorMerge(node, self._inputs, self._kernels, settings).prepared(None).figures
        assert isinstance(figures, DeltaPass), node.step
        self._figures = figures
        self._count = min(self._inputs.elements, self._inputs.tile_elements)
        self._tile = self._read()
        self._in_bytes = sum(buffer.nbytes for buffer in self._tile.buffers)
        self._out = self._inputs.room(self._tile)
        self._dtype = node.slot.dtype

    @property
    def elements(self) -> int:
        """Of the tile."""
        return self._count

    def measured(self) -> list[Stage]:
        """Every stage, in the order in which a tile takes them."""
        # Kernels go to the stream that is waited for.
        self._streams.compute()
        with closing(self._readers):
            return [*self._host(), *self._sent(), *self._computed(), *self._brought()]

    def _host(self) -> Iterator[Stage]:
        nowhere = [unpinned(buffer.nbytes) for buffer in self._tile.buffers]

        def copy() -> None:
            for target, source in zip(nowhere, self._tile.buffers, strict=True):
                np.copyto(target, source)

        yield self._timed("copy in host memory", self._in_bytes, copy)
        yield self._timed("read a cached file", self._in_bytes, self._read)

    def _sent(self) -> Iterator[Stage]:
        plain = [torch.from_numpy(buffer.copy()) for buffer in self._tile.buffers]

        def send() -> None:
            for one in plain:
                one.to(self._device, copy=True)

        yield self._timed("to the device, not pinned", self._in_bytes, send)
        yield self._timed("to the device, pinned", self._in_bytes, self._send)

    def _computed(self) -> Iterator[Stage]:
        sent = self._send()
        again = [torch.empty_like(one) for one in sent]
        self._streams.drain()
        raw = self._tile
        tile = DeviceTile(raw.buffers, raw.dtypes, 0, raw.count, sent, lambda *_: None)
        kernels, out, dtype = self._kernels, self._out, self._dtype
        figures, inputs = self._figures, len(sent)
        equal = np.full(inputs, 1 / inputs, np.float32)
        bins = [int(row[BITS]) >> 16 for row in figures.selectors]
        high = np.zeros((inputs - 1, HIGH_BINS), np.int64)
        low = np.zeros((inputs - 1, LOW_COLUMNS), np.int64)
        sums = new_sums(num_pairs(inputs))

        def copy() -> None:
            for target, source in zip(again, sent, strict=True):
                target.copy_(source)

        works: dict[str, Callable[[], object]] = {
            DEVICE_COPY: copy,
            "kernel: span": lambda: kernels.span(tile, equal, relative=False, out=out, dtype=dtype),
            "kernel: gram": lambda: kernels.gram(tile, relative=False, sums=sums),
            "kernel: histogram, upper bits": lambda: kernels.count_high(tile, high),
            "kernel: histogram, lower bits": lambda: kernels.count_low(tile, bins, low),
            "kernel: delta, trimmed": lambda: kernels.delta(tile, figures, out=out, dtype=dtype),
        }
        for name, work in works.items():
            yield self._timed(name, self._in_bytes, work)

    def _brought(self) -> Iterator[Stage]:
        result = torch.from_numpy(self._out).to(self._device, copy=True)
        targets = {"not pinned": unpinned(self._out.nbytes), "pinned": self._out}
        for how, memory in targets.items():
            target = torch.from_numpy(memory)

            def bring(target: Tensor = target) -> None:
                self._streams.bring(result, target)

            yield self._timed(f"from the device, {how}", self._out.nbytes, bring)
        with tempfile.TemporaryDirectory() as folder:
            hashes = unit_hash(b"", whole_shard=False)
            with PosixShard(Path(folder, "shard"), self._out.nbytes) as shard:

                def write() -> None:
                    shard.write_at(self._out.data, 0)
                    hashes.update(self._out)

                yield self._timed("write and hash", self._out.nbytes, write)

    def _read(self) -> Tile:
        return self._inputs.tile(0, self._count)

    def _send(self) -> list[Tensor]:
        return [self._streams.send(torch.from_numpy(buffer)) for buffer in self._tile.buffers]

    def _timed(self, name: str, num_bytes: int, work: Callable[[], object]) -> Stage:
        taken = []
        for _ in range(self._repeat + 1):
            self._streams.drain()
            began_s = perf_counter()
            work()
            self._streams.drain()
            taken.append(perf_counter() - began_s)
        return Stage(name=name, num_bytes=num_bytes, seconds=min(taken[1:]))
