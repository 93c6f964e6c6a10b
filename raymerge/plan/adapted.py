"""The two kinds of tensor that an adapter makes of a model's."""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.plan.graph import Derived, Input, Read, TensorNode

CHUNK = 2**16
"""Elements at a time where a whole tensor is read ahead of its first tile."""
COPIED_ELEMENTS = 2**20
"""The longest stretch that is asked for at once besides tiles: what is copied comes in 2 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted(Derived):
    """`base + scaling * B @ A`, or with magnitudes m `m * (base + scaling * B @ A) / length`.

    Lengths are those of the rows of the sum, one for each output of the module.
    """

    base: Input
    a: Read
    """`(rank, inputs)`."""
    b: Read
    """`(outputs, rank)`."""
    magnitude: Read | None
    """`(outputs,)`, in whatever shape."""
    rank: int
    scaling: float
    transposed: bool
    """The tensor is `(inputs, outputs)`: an embedding, or a matrix of GPT-2's."""

    @property
    def how(self) -> str:
        """See `Derived.how`."""
        base = "base" if isinstance(self.base, Read) else f"({self.base.how})"
        added = f"{base} + {self.scaling:.6g} B@A"
        return f"{f'm ({added}) / length' if self.magnitude else added} (rank {self.rank})"

    @property
    def read_bytes(self) -> int:
        """What one sweep over it reads; lengths take a sweep over the base of their own."""
        base_bytes = self.base.read_bytes * (2 if self.magnitude else 1)
        magnitude_bytes = self.magnitude.read_bytes if self.magnitude else 0
        return base_bytes + self.a.read_bytes + self.b.read_bytes + magnitude_bytes

    @property
    def identity(self) -> tuple[object, ...]:
        """See `Derived.identity`."""
        stored = tuple(read.identity for read in self.reads)
        figures = self.rank, self.scaling, self.transposed, self.magnitude is not None
        return "Adapted", self.source, self.name, self.base.identity, stored, figures

    @property
    def results(self) -> tuple[TensorNode, ...]:
        """See `Derived.results`."""
        return self.base.results

    def scratch_bytes(self, tile_elements: int) -> int:
        """See `Derived.scratch_bytes`."""
        # Widened A and B stay, beside the raw bytes of one or, transposed, for a while a copy.
        factors = 8 * (self.a.num_elements + self.b.num_elements)
        outputs = self.b.shape[0]
        lengths = 32 * outputs + CHUNK * self.base.dtype.bits // 8 if self.magnitude else 0
        apart = 0
        if self.base.dtype is not self.dtype:
            apart = max(tile_elements, COPIED_ELEMENTS) * self.base.dtype.bits // 8
        return factors + lengths + apart + self.base.scratch_bytes(tile_elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Derived):
    """A tensor that the adapter holds whole, in the model's dtype."""

    @property
    def how(self) -> str:
        """See `Derived.how`."""
        return "the adapter's"

    def scratch_bytes(self, tile_elements: int) -> int:
        """See `Derived.scratch_bytes`."""
        (read,) = self.reads
        if read.dtype is self.dtype:
            return 0
        return max(tile_elements, COPIED_ELEMENTS) * read.dtype.bits // 8
