"""SHA-256 of two streams at once, with the instructions that x86 processors have for it.

One stream waits for itself: each pair of rounds needs the one before, and takes longer than the
unit that does them. Two streams, instruction by instruction in turn, fill that time: on a core of
Zen 4 two of them had 1.23 GB/s each where hashlib's one alone had 1.38.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from raymerge.kernels.floats import pointer
from raymerge.kernels.jit import kernel, part
from raymerge.kernels.tile import Bytes

BLOCK_BYTES = 64
MESSAGE_VECTORS = 4
"""Of four words each, that a block is."""
STREAMS = 2

_WORDS = ir.VectorType(ir.IntType(32), 4)
_BYTES = ir.VectorType(ir.IntType(8), 16)
_SWAP = [4 * (i // 4) + 3 - i % 4 for i in range(16)]
"""Big-endian words in the order of this machine's."""


def _roots(power: int, count: int) -> list[int]:
    """First 32 bits of the fractional parts of the roots of the first primes (FIPS 180-4)."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))][:count]
    found = []
    for prime in primes:
        scaled, root = prime << (32 * power), 0
        for bit in reversed(range(36)):
            if (root | 1 << bit) ** power <= scaled:
                root |= 1 << bit
        found.append(root & 0xFFFFFFFF)
    return found


ROUND_WORDS = _roots(3, 64)
"""The standard's constants, one a round."""
FIRST_WORDS = np.array(_roots(2, 8), np.uint32)
"""The state of a stream before its first block, from a to h."""
# The instructions keep a..h as the vectors (f, e, b, a) and (h, g, d, c).
_ORDER = [5, 4, 1, 0, 7, 6, 3, 2]
_BEGIN: npt.NDArray[np.uint32] = FIRST_WORDS[_ORDER]


def available() -> bool:
    """Whether this processor, as numba compiles for it, has the instructions."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith("x86_64") and {"+sha", "+ssse3"} <= set(features.split(","))


def _vector(lanes: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _instruction(builder: Any, name: str, *operands: Any) -> Any:
    types_ = [_WORDS] * len(operands)
    declared = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_WORDS, types_), f"llvm.x86.{name}"
    )
    return builder.call(declared, operands)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _message(builder: Any, address: Any, number: int) -> Any:
    """Four words of a block."""
    offset = ir.Constant(ir.IntType(64), 16 * number)
    raw = _load(builder, builder.add(address, offset), _BYTES)
    swapped = builder.shuffle_vector(raw, raw, _vector(_SWAP))
    return builder.bitcast(swapped, _WORDS)


def _scheduled(builder: Any, last: list[Any]) -> Any:
    """The four words that follow sixteen."""
    across = builder.shuffle_vector(last[2], last[3], _vector([1, 2, 3, 4]))
    partly = builder.add(_instruction(builder, "sha256msg1", last[0], last[1]), across)
    return _instruction(builder, "sha256msg2", partly, last[3])


def _four_rounds(builder: Any, state: list[Any], words: Any, number: int) -> list[Any]:
    keyed = builder.add(words, _vector(ROUND_WORDS[4 * number : 4 * number + 4]))
    upper = builder.shuffle_vector(keyed, keyed, _vector([2, 3, 2, 3]))
    abef, cdgh = state
    cdgh = _instruction(builder, "sha256rnds2", cdgh, abef, keyed)
    abef = _instruction(builder, "sha256rnds2", abef, cdgh, upper)
    return [abef, cdgh]


def _compress(builder: Any, states: list[list[Any]], blocks: list[Any]) -> list[list[Any]]:
    """The states after one block each, the streams' instructions in turn."""
    now = states
    words: list[list[Any]] = [[] for _ in blocks]
    for number in range(16):
        for stream, block in enumerate(blocks):
            words[stream].append(
                _message(builder, block, number)
                if number < MESSAGE_VECTORS
                else _scheduled(builder, words[stream][-4:])
            )
        now = [
            _four_rounds(builder, state, mine[-1], number)
            for state, mine in zip(now, words, strict=True)
        ]
    return [
        [builder.add(new, old) for new, old in zip(after, before, strict=True)]
        for after, before in zip(now, states, strict=True)
    ]


@intrinsic  # type: ignore[untyped-decorator]
def _compress_blocks(_typing: Any, states: Any, first: Any, second: Any, count: Any) -> Any:
    """Take `count` blocks from each of two addresses into the two states at an address."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        at, *blocks, num_blocks = args
        i64 = ir.IntType(64)
        places = [builder.add(at, ir.Constant(i64, 16 * i)) for i in range(2 * STREAMS)]
        held = [
            cgutils.alloca_once_value(builder, _load(builder, place, _WORDS)) for place in places
        ]
        with cgutils.for_range(builder, num_blocks) as loop:
            offset = builder.mul(loop.index, ir.Constant(i64, BLOCK_BYTES))
            now = [builder.load(one) for one in held]
            states = [now[:2], now[2:]]
            after = _compress(builder, states, [builder.add(block, offset) for block in blocks])
            for one, value in zip(held, [*after[0], *after[1]], strict=True):
                builder.store(value, one)
        for place, one in zip(places, held, strict=True):
            stored = builder.store(builder.load(one), builder.inttoptr(place, _WORDS.as_pointer()))
            stored.align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@part
def _compress_alone(state: Any, block: int) -> None:
    both = np.empty((STREAMS, state.size), np.uint32)
    both[:] = state
    _compress_blocks(both.ctypes.data, block, block, 1)
    state[:] = both[0]


@kernel("void(uint32[:, ::1], uint8[:, ::1], int64[::1], int64[::1], int64)")
def _take(states: Any, tails: Any, lengths: Any, addresses: Any, nbytes: int) -> None:
    """Take as many bytes into both streams, each from where it stands in a block."""
    begun = np.zeros(STREAMS, np.int64)
    for i in range(STREAMS):
        content = carray(pointer(addresses[i]), (nbytes,), np.uint8)
        used = lengths[i] % BLOCK_BYTES
        begun[i] = min(nbytes, -used % BLOCK_BYTES)
        tails[i, used : used + begun[i]] = content[: begun[i]]
        if used and used + begun[i] == BLOCK_BYTES:
            _compress_alone(states[i], tails[i].ctypes.data)
    count = max(0, (nbytes - begun.max()) // BLOCK_BYTES)
    first, second = addresses + begun
    _compress_blocks(states.ctypes.data, first, second, count)
    for i in range(STREAMS):
        content = carray(pointer(addresses[i]), (nbytes,), np.uint8)
        done = begun[i] + count * BLOCK_BYTES
        if nbytes - done >= BLOCK_BYTES:
            _compress_alone(states[i], addresses[i] + done)
            done += BLOCK_BYTES
        tails[i, : nbytes - done] = content[done:]
        lengths[i] += nbytes


class PairedHash:
    """SHA-256 of two streams that grow by as many bytes, and may begin anew one by one."""

    def __init__(self) -> None:
        self._states = np.tile(_BEGIN, (STREAMS, 1))
        self._tails = np.zeros((STREAMS, BLOCK_BYTES), np.uint8)
        self._lengths = np.zeros(STREAMS, np.int64)

    def update(self, content: Bytes, other: Bytes | None = None) -> None:
        """Take the next bytes into both, or into the second as many others."""
        both = content, content if other is None else other
        assert both[0].nbytes == both[1].nbytes, [each.nbytes for each in both]
        addresses = np.array([each.__array_interface__["data"][0] for each in both], np.int64)
        _take(self._states, self._tails, self._lengths, addresses, content.nbytes)

    def restart(self, stream: int) -> None:
        """Forget what one stream has taken."""
        self._states[stream] = _BEGIN
        self._lengths[stream] = 0

    def hexdigest(self, stream: int) -> str:
        """Of what one stream has taken since it began."""
        length = int(self._lengths[stream])
        end = b"\x80" + bytes(-(length + 9) % BLOCK_BYTES) + (8 * length).to_bytes(8, "big")
        # Both streams of another pair go on from here, so that this one's stays as it is.
        ended = PairedHash()
        ended._states[:] = self._states[stream]
        ended._tails[:] = self._tails[stream]
        ended._lengths[:] = length
        ended.update(np.frombuffer(end, np.uint8))
        words: npt.NDArray[np.uint32] = ended._states[0][np.argsort(_ORDER)]
        return words.byteswap().tobytes().hex()
