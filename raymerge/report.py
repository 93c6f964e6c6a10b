"""Results as text: what `raymerge merge`, `verify` and `convert` print for people."""

from __future__ import annotations

from collections.abc import Iterator

from raymerge.checkpoint.verify import Verification
from raymerge.runtime.convert import Conversion
from raymerge.runtime.driver import MergeResult
from raymerge.units import format_bytes


def merge_text(result: MergeResult) -> str:
    """A finished merge in one line."""
    return (
        f"{result.output}: {result.tensors} tensors, {len(result.shards)} shards, read "
        f"{format_bytes(result.bytes_read)}, wrote {format_bytes(result.bytes_written)} in "
        f"{result.seconds:.1f} s, {result.resumed_units} units resumed, plan {result.digest}"
    )


def verification_text(found: Verification) -> str:
    """Problems and notes, a line each, and a last line that counts."""
    return "\n".join(_verification_lines(found))


def _verification_lines(found: Verification) -> Iterator[str]:
    yield from (f"problem: {problem}" for problem in found.problems)
    yield from (f"note: {note}" for note in found.notes)
    hashed = "sha256 checked" if found.checked_sha256 else "no sha256 to check"
    yield (
        f"{found.checkpoint}: {'ok' if found.ok else f'{len(found.problems)} problems'}, "
        f"{found.tensors} tensors, {found.parameters} parameters, {format_bytes(found.bytes)}, "
        f"{hashed}"
    )


def conversion_text(result: Conversion) -> str:
    """A finished conversion: a line on each tied tensor, and one that counts."""
    tied = [f"tied: {left.name} is {left.same_as}, written once" for left in result.tied]
    cast = f", {result.cast} cast to {result.dtype}" if result.cast else ""
    counted = (
        f"{result.output}: {result.tensors} tensors{cast}, {len(result.shards)} shards, read "
        f"{format_bytes(result.bytes_read)}, wrote {format_bytes(result.bytes_written)} in "
        f"{result.seconds:.1f} s, {result.digest}"
    )
    return "\n".join([*tied, counted])
