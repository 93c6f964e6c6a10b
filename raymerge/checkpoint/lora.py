"""What a LoRA's adapter_config.json says, as far as adding it to its model goes.

    W + scaling * B @ A        scaling = alpha / rank, or alpha / sqrt(rank) where rank-stabilised

Hu et al., arXiv:2106.09685; the square root: Kalajdzievski, arXiv:2312.03732; magnitudes: Liu et
al., DoRA, arXiv:2402.09353. The file is PEFT's. What it says about training only is passed over;
what would change the result and is not implemented is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raymerge.errors import PlanError, SourceError

ADAPTER_CONFIG = "adapter_config.json"

_READ = frozenset({
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern",
    "alpha_pattern", "base_model_name_or_path", "bias", "init_lora_weights",
})  # fmt: skip
# How it was trained, or which tensors are in its file, which the file itself shows.
_OF_TRAINING = frozenset({
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
# These draw A and leave the model's own weights as they were.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_BIASES = (None, "none", "all", "lora_only")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """How the factors of a LoRA are added to a model."""

    rank: int
    alpha: float
    rank_stabilised: bool
    dora: bool
    """Rows of the sum are rescaled to lengths that the adapter stores."""
    transposed: bool
    """`fan_in_fan_out`: the model's matrices are (inputs, outputs), as GPT-2's are."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Ranks of modules whose name, or end of a name after a dot, an expression matches."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    base: str | None = None
    """What it was trained on, as it was called there."""

    def rank_of(self, module: str) -> int:
        """The rank at a module, by its name in the model it was trained on."""
        return _first(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """What B @ A is multiplied by at a module."""
        rank, alpha = self.rank_of(module), _first(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def parse_lora(config: Mapping[str, Any], *, source: str) -> Lora:
    """Read the content of adapter_config.json.

    Raises:
        PlanError: It says something that raymerge does not implement.
        SourceError: A value is none that it can have.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _refusal(source, f"is of peft_type {kind!r}; only LORA adapters can be added")
    for key, value in config.items():
        if value and key not in _READ | _OF_TRAINING:
            raise _refusal(source, f"sets {key}, which raymerge does not implement")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise _refusal(
            source,
            f"says init_lora_weights: {start!r}, a start that changes the model's weights as well. "
            "If the model it is added to has them changed, set it to true",
        )
    if config.get("bias") not in _BIASES:
        raise _refusal(source, f"says bias: {config['bias']!r}; known are none, all and lora_only")
    base = config.get("base_model_name_or_path")
    return Lora(
        rank=_rank(config, "r", source),
        alpha=_number(config, "lora_alpha", source),
        rank_stabilised=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        transposed=bool(config.get("fan_in_fan_out")),
        rank_pattern=tuple(
            (expression, _rank(pattern, expression, source))
            for pattern in [_pattern(config, "rank_pattern", source)]
            for expression in pattern
        ),
        alpha_pattern=tuple(
            (expression, _number(pattern, expression, source))
            for pattern in [_pattern(config, "alpha_pattern", source)]
            for expression in pattern
        ),
        base=base if isinstance(base, str) else None,
    )


def _first(pattern: Sequence[tuple[str, Number]], module: str, otherwise: Number) -> Number:
    for expression, value in pattern:
        if re.match(rf"(.*\.)?({expression})$", module):
            return value
    return otherwise


def _pattern(config: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        raise _malformed(source, f"its {key} is {pattern!r}; expected an object")
    for expression in pattern:
        try:
            re.compile(expression)
        except re.error as error:
            why = f"in its {key} {expression!r} is no regular expression: {error}"
            raise _malformed(source, why) from None
    return pattern


def _rank(fields: Mapping[str, Any], key: str, source: str) -> int:
    value = fields.get(key)
    if type(value) is int and value > 0:
        return value
    raise _malformed(source, f"its {key} is {value!r}; expected a rank, a whole number above 0")


def _number(fields: Mapping[str, Any], key: str, source: str) -> float:
    value = fields.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise _malformed(source, f"its {key} is {value!r}; expected a number")


def _malformed(source: str, why: str) -> SourceError:
    return SourceError(f"{source}: {ADAPTER_CONFIG}: {why}", source=source, file=ADAPTER_CONFIG)


def _refusal(source: str, why: str) -> PlanError:
    return PlanError(
        f"{source}: {ADAPTER_CONFIG} {why}. Merge the adapter into its model with PEFT "
        "(merge_and_unload) and give the result.",
        source=source,
        file=ADAPTER_CONFIG,
    )
