"""What a delta method returns: a `DeltaRule`, plain figures that the fused delta pass follows.

For every entry of a tensor, with task vectors d_i (source minus base, float32):

    keep     which entries of d_i stay          KeepLargest | KeepBand | KeepDrawn | KeepRanked
    share    D_i = d_i * c_i, c_i = weight_i * rescaling
    elect    S = sign(sum D_i), a zero sum counts as +; shares of the other sign are left out
    fuse     mix = sum D_i over those left; under `normalize` divided by the sum of their weights
    add      base + mix * scale
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

SMALLEST_DIVISOR = 1e-6
"""A sum of weights below this fraction of their magnitudes is cancellation, not a divisor."""
MAX_MIXED_SIGN_SOURCES = 20
"""Above this, the subsets of weights of both signs are too many (2**20) to be checked."""

PROBABILITY_SLACK = 1e-9
"""Sums such as 0.7 + 0.3 may miss 1 by a rounding."""


class SourcesRefusedError(ValueError):
    """Sources whose values for knobs cannot be used, known here by their numbers only.

    Args:
        knobs: The knobs to change one of, all of them per source.
        message: What is wrong, with `<1>` where the first source is named.
    """

    def __init__(self, knobs: tuple[str, ...], message: str) -> None:
        super().__init__(knobs, message)
        self.knobs = knobs
        self._message = message

    def __str__(self) -> str:
        return _NAMED.sub(r"source \1", self._message)

    @property
    def sources(self) -> tuple[int, ...]:
        """Those that are named, as they come, counted from 0."""
        return tuple(int(number) - 1 for number in _NAMED.findall(self._message))

    def naming(self, labels: Sequence[str]) -> str:
        """The message, with all sources' labels in place of their numbers."""
        return _NAMED.sub(lambda found: labels[int(found[1]) - 1], self._message)


_NAMED = re.compile(r"<(\d+)>")


class Scope(StrEnum):
    """What a density is a fraction of."""

    TENSOR = "tensor"
    MODEL = "model"


class Rescale(StrEnum):
    """How what is kept makes up for what is dropped."""

    NONE = "none"
    DENSITY = "density"
    """Divide by the probability to stay: unbiased for random drops."""
    L1 = "l1"
    """Scale so that the tensor's L1 norm is what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLargest:
    """The `max(1, int(density * n))` largest of n entries by magnitude stay; none at density 0."""

    density: tuple[float, ...]
    """One per source, 0 to 1."""
    scope: Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepBand:
    """`int(density * n)` of n entries stay: the largest but for `int(gamma * n)` outliers.

    Where those are more than there are to drop, fewer outliers are dropped. At density 1 all stay.
    """

    density: tuple[float, ...]
    """One per source, 0 to 1."""
    gamma: tuple[float, ...]
    """One per source, 0 to 1: what fraction of the largest is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepDrawn:
    """Each entry stays with probability `density`, drawn from the keyed generator."""

    density: tuple[float, ...]
    """One per source, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRanked:
    """Each entry stays with a probability that rises with its magnitude's rank in its row.

    From `density - epsilon` for the smallest to `density + epsilon` for the largest. At density 0
    none stays, at density 1 all do.

    Raises:
        SourcesRefusedError: A probability is below 0 or above 1.
    """

    density: tuple[float, ...]
    """One per source, 0 to 1."""
    epsilon: tuple[float, ...]
    """One per source, 0 to 1."""

    def __post_init__(self) -> None:
        pairs = zip(self.density, self.epsilon, strict=True)
        for source, (density, epsilon) in enumerate(pairs, start=1):
            if not is_ranked(density):
                continue
            lowest, highest = density - epsilon, density + epsilon
            if lowest < -PROBABILITY_SLACK or highest > 1 + PROBABILITY_SLACK:
                most = min(density, 1 - density)
                raise SourcesRefusedError(
                    ("epsilon", "density"),
                    f"density {density:g} and epsilon {epsilon:g} of <{source}> make entries "
                    f"stay with probabilities from {lowest:g} to {highest:g}, which have to lie "
                    f"between 0 and 1: write an `epsilon` of {most:g} or less, or a `density` "
                    f"{_allowed_densities(epsilon)}",
                )


def is_ranked(density: float) -> bool:
    """Whether a density leaves anything to draw by rank: 0 keeps nothing and 1 everything."""
    return 0 < density < 1


def _allowed_densities(epsilon: float) -> str:
    if epsilon > 1 / 2:
        return "of 1, which keeps all"
    return f"from {epsilon:g} to {1 - epsilon:g}, or 1, which keeps all"


Keep = KeepLargest | KeepBand | KeepDrawn | KeepRanked


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRule:
    """How task vectors become one delta.

    Raises:
        SourcesRefusedError: Under `normalize`, some set of weights cancels: its sum is no divisor.
    """

    keep: Keep
    weight: tuple[float, ...]
    """Share of each source in the vote and in the mix."""
    rescale: Rescale
    elect: bool
    normalize: bool
    scale: float
    """`lambda`: factor of the merged delta."""

    def __post_init__(self) -> None:
        if self.normalize:
            check_divisors(self.weight, every_subset=self.elect)


def check_divisors(weight: tuple[float, ...], *, every_subset: bool) -> None:
    """Raise unless the weights can be divided by their sum.

    After an election any set of sources may be what is left, so every subset has to have a usable
    sum; without one only the whole has. Sources of weight 0 take no part.
    """
    used = [(index, value) for index, value in enumerate(weight, start=1) if value != 0]
    if not used or all(value > 0 for _, value in used) or all(value < 0 for _, value in used):
        return
    if every_subset and len(used) > MAX_MIXED_SIGN_SOURCES:
        raise ValueError(
            f"{len(used)} weights of both signs under `normalize: true` have too many subsets to "
            f"check for cancellation (at most {MAX_MIXED_SIGN_SOURCES}); write `normalize: false`"
        )
    sizes = range(2, len(used) + 1) if every_subset else (len(used),)
    for size in sizes:
        for subset in combinations(used, size):
            total = sum(value for _, value in subset)
            if abs(total) < SMALLEST_DIVISOR * sum(abs(value) for _, value in subset):
                listed = ", ".join(f"{value:g} (<{index}>)" for index, value in subset)
                raise SourcesRefusedError(
                    ("weight",),
                    f"the weights {listed} sum to {total:g}, and `normalize: true` divides by such "
                    "a sum wherever only these sources are left; write `normalize: false` or "
                    "change a weight",
                )


def drawn_rescale(rescale: bool | str) -> Rescale:  # noqa: FBT001 - the knob's own type
    """What `rescale` means where entries are drawn: true is 1/probability, `l1` is mergekit's."""
    if rescale == "l1":
        return Rescale.L1
    return Rescale.DENSITY if rescale else Rescale.NONE
