"""What becomes of config.json when slices change the layers: their number and what is said of each.

For every architecture, by what the donor's config says and how many layers its files have: the key
whose value is that number gets the new one, a list of that length is put together anew from the
sources' lists, a list of layer numbers is renumbered. What a key means is told by its name where
lengths cannot say; what cannot be told is a note for the reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from raymerge.errors import PlanError
from raymerge.plan.layer_counts import (
    COUNT,
    EXTRA,
    contradicted,
    describing,
    num_extra,
    said_counts,
    section_at,
    side_of,
)
from raymerge.plan.parts import Stack

# As long as there are layers by chance, if at all.
_NOT_BY_LAYER = ("architectures", "mrope_section", "keys_to_ignore_at_inference")
_NOT_BY_LAYER_ENDINGS = ("token_id", "token_ids", "_tokens", "_mean", "_std", "_sizes", "_dims")
_NUMBERS = (
    "mlp_only_layers",
    "cross_attention_layers",
    "full_attn_idxs",
    "attn_layer_indices",
    "global_attn_indexes",
    "hybrid_layer_ids",
    "fullatt_block_indexes",
    "full_attention_layers",
    "moe_layers",
)
"""Lists of layer numbers, counted from 0."""
_NUMBERS_MAYBE = ("layers", "indices", "indexes", "idxs", "layer_ids")
_FIRST_ONES = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
"""How many layers, from the first, are of another kind than the rest."""
_LAST_ONES = ("num_kv_shared_layers",)
_PERIODS = {
    "sliding_window_pattern": True,
    "_sliding_window_pattern": True,
    "full_attention_interval": True,
    "global_attn_every_n_layers": True,
    "attn_layer_period": False,
    "expert_layer_period": False,
    "decoder_sparse_step": False,
    "interleave_moe_layer_step": False,
    "no_rope_layer_interval": False,
}
"""Every so many layers one is of another kind; true where `layer_types` has the last word."""
_TYPES = "layer_types"
_PARITY = {"gemma2": 2}
"""Model types whose code alternates without a key that says so."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A value of the donor's config.json that the output's differs in."""

    path: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        """As messages call it: `text_config.num_hidden_layers`."""
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """All that slices change in config.json."""

    edits: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be decided, a line each."""


def layer_config(
    stacks: Sequence[Stack], configs: Sequence[Mapping[str, Any]], *, donor: int
) -> ConfigChange:
    """Decide the edits of the donor's config.json.

    Args:
        stacks: What slices build.
        configs: config.json of every source.
        donor: Position of the one whose config the output gets.

    Raises:
        PlanError: The number of layers changes, and nothing in the config tells where to say so.
    """
    edits: list[Edit] = []
    notes: list[str] = []
    for stack in stacks if configs[donor] else ():
        author = _Author(stack, configs, donor)
        author.write()
        edits += author.edits
        notes += author.notes
    return ConfigChange(tuple(edits), tuple(notes))


@dataclass(slots=True)
class _Author:
    """Rewrites what the donor's config says of one stack."""

    stack: Stack
    configs: Sequence[Mapping[str, Any]]
    donor: int
    edits: list[Edit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self) -> None:
        config, old = self.configs[self.donor], self.stack.depths[self.donor]
        counts = said_counts(config, self.stack.name, old)
        if not counts and contradicted(config, self.stack.name):
            new = len(self.stack.origin)
            self.notes.append(
                f"config.json: nothing says that {self.stack.name} has {old} layers; it has {new} "
                "now, which the config may have to say"
            )
        elif not counts:
            counts = self._left_out()
        for path, keys in counts.items():
            self._write_section(path, keys)

    def _left_out(self) -> dict[tuple[str, ...], list[str]]:
        """Where to give the number of layers that the config leaves to its class's default."""
        path = describing(self.configs[self.donor], self.stack.name)
        old, new = self.stack.depths[self.donor], len(self.stack.origin)
        if path is None and old == new:
            return {}
        if path is None:
            raise PlanError(
                f"{self.stack.name} gets {new} layers instead of {old}, and the donor's "
                "config.json neither says how many there are nor tells where to say so; add the "
                f"key that its class reads there, with the value {old}"
            )
        if old != new:
            where = ".".join((*path, COUNT))
            self.notes.append(
                f"config.json: nothing says that {self.stack.name} has {old} layers; it has {new} "
                f"now, and {where} is added to say so"
            )
            for key, value in section_at(self.configs[self.donor], path).items():
                if "layer" in key and type(value) is int and value == old:
                    self._note(path, key, f"is {old}, as many as there were layers")
        return {path: [COUNT]}

    def _write_section(self, path: tuple[str, ...], keys: Sequence[str]) -> None:
        section = section_at(self.configs[self.donor], path)
        old = section.get(keys[0], self.stack.depths[self.donor] - num_extra(section))
        extra = self.stack.depths[self.donor] - old
        count = len(self.stack.origin)
        if extra:
            beyond = [layer >= old for _, layer in self.stack.origin]
            last = sum(beyond)
            if beyond != [False] * (count - last) + [True] * last:
                self._note(path, EXTRA, "prediction layers are among the others now")
            self._edit(path, EXTRA, last)
            count -= last
        for key in keys:
            if key in section or count != old:
                self._edit(path, key, count)
        origin = self.stack.origin[:count]
        sided = side_of(self.stack.name)
        for key, value in section.items():
            if key in keys or (sided and sided in keys[0] and sided not in key):
                continue
            self._write_key(path, key, value, old, origin)
        self._check_periods(path, section, origin)

    def _write_key(
        self,
        path: tuple[str, ...],
        key: str,
        value: Any,
        old: int,
        origin: Sequence[tuple[int, int]],
    ) -> None:
        if key in _NUMBERS and _are_numbers(value):
            self._edit(path, key, [n for n, at in enumerate(origin) if self._lists(path, key, at)])
        elif _is_by_layer(key, value, old):
            kinds = [self._of_layer(path, key, at) for at in origin]
            self._edit(path, key, "".join(kinds) if isinstance(value, str) else kinds)
        elif key in _FIRST_ONES and type(value) is int:
            first = [layer < value for _, layer in origin]
            if first == sorted(first, reverse=True):
                self._edit(path, key, sum(first))
            else:
                self._note(path, key, f"is {value}, and the first layers are not in front now")
        elif key in _LAST_ONES and type(value) is int and value:
            self._note(
                path, key, f"is {value} and counts from the last layer, which may be another"
            )
        elif key.endswith(_NUMBERS_MAYBE) and _are_numbers(value) and value:
            self._note(path, key, f"is {value}: if these are layers, they have other numbers now")

    def _of_layer(self, path: tuple[str, ...], key: str, at: tuple[int, int]) -> Any:
        """What the layer's own source says of it, else what the donor says."""
        source, layer = at
        donors = section_at(self.configs[self.donor], path)[key]
        own = section_at(self.configs[source], path).get(key)
        if isinstance(own, type(donors)) and layer < len(own):
            return own[layer]
        return donors[layer % len(donors)]

    def _lists(self, path: tuple[str, ...], key: str, at: tuple[int, int]) -> bool:
        own = section_at(self.configs[at[0]], path).get(key)
        listed = own if isinstance(own, list) else section_at(self.configs[self.donor], path)[key]
        return at[1] in listed

    def _check_periods(
        self,
        path: tuple[str, ...],
        section: Mapping[str, Any],
        origin: Sequence[tuple[int, int]],
    ) -> None:
        listed = _TYPES in section
        periods = {
            key: section[key]
            for key, yields in _PERIODS.items()
            if type(section.get(key)) is int and section[key] > 1 and not (yields and listed)
        }
        parity = _PARITY.get(str(section.get("model_type")))
        if parity and not listed:
            periods["model_type"] = parity
        for key, period in periods.items():
            moved = [n for n, (_, layer) in enumerate(origin) if (n - layer) % period]
            if moved:
                self._note(
                    path,
                    key,
                    f"is {section[key]}: every {period} layers one is of another kind, and layer "
                    f"{moved[0]} was {origin[moved[0]][1]}, in another place of that pattern",
                )

    def _edit(self, path: tuple[str, ...], key: str, value: Any) -> None:
        if section_at(self.configs[self.donor], path).get(key) != value:
            self.edits.append(Edit((*path, key), value))

    def _note(self, path: tuple[str, ...], key: str, text: str) -> None:
        self.notes.append(f"config.json: {'.'.join((*path, key))} {text}; it is left as it is")


def edited(config: Mapping[str, Any], edits: Sequence[Edit]) -> Mapping[str, Any]:
    """The config with the edits made; the one given stays as it is."""
    if not edits:
        return config
    made: dict[str, Any] = deepcopy(dict(config))
    for edit in edits:
        *path, key = edit.path
        section = made
        for name in path:
            section = section[name]
        section[key] = edit.value
    return made


def _is_by_layer(key: str, value: Any, number: int) -> bool:
    """Whether a value has an element for each of `number` layers."""
    if isinstance(value, str):
        return len(value) == number and key.endswith("pattern")
    if not isinstance(value, list) or len(value) != number:
        return False
    return key not in _NOT_BY_LAYER and not key.endswith(_NOT_BY_LAYER_ENDINGS)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
