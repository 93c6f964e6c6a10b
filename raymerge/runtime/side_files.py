"""What lies beside the shards: config.json, the tokenizer and whatever else the donor has.

Pure functions from a plan and the donor's folder to bytes; publishing them is `commit`'s business.
The donor's files are copied byte for byte. Its config.json is changed where the merge made it
untrue - precision, quantisation, tied head, layers - and copied byte for byte where it did not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from raymerge.checkpoint.catalog import CONFIG_NAME, WEIGHTS
from raymerge.checkpoint.dtypes import OUTPUT_DTYPES, DType
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.index import RECORD_NAME
from raymerge.checkpoint.quantised import CONFIG_KEYS
from raymerge.checkpoint.strict_json import parse_config
from raymerge.checkpoint.ties import TiePolicy, config_sections
from raymerge.errors import SourceError
from raymerge.plan.build import Plan
from raymerge.recipe import Recipe
from raymerge.runtime.ledger import LEDGER_NAMES
from raymerge.tokenizer.files import GENERATION_CONFIG, TOKENIZER_FILES
from raymerge.units import format_bytes

MAX_COPIED_BYTES = 256 * 2**20
"""Side files are held in memory until the commit. The largest tokenizers are some 30 MB."""

# Lower case, because a Hub repository may be of anyone's hand. What these would say of the output
# is untrue or not about a model; LICENSE and NOTICE are not among them and so travel along.
# A loader that finds this beside a model puts an adapter on top of it.
_ADAPTER = ("adapter_config.json",)
_QUANTISED = (
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quant_strategy.json",
    "*imatrix*",
)
_OF_TRAINING = "left by training"
_NOT_COPIED = {
    "describes the donor": ("readme*", RECORD_NAME, *LEDGER_NAMES.values(), "mergekit_config.y*ml"),
    "hidden": (".*",),
    "of an adapter": _ADAPTER,
    "of a quantised model": _QUANTISED,
    _OF_TRAINING: (
        "optimizer*",
        "scheduler.*",
        "scaler.*",
        "rng_state*",
        "training_args*",
        "trainer_state*",
        "trainer_log*",
        "*_results.json",
        "events.*",
        "*.tfevents*",
        "*.log",
        "latest",
        "zero_to_fp32.py",
    ),
    "left by a download": ("*.incomplete", "*.part", "*.tmp", "*.lock"),
}
_LOADED = (
    CONFIG_NAME,
    GENERATION_CONFIG,
    "*processor_config.json",
    *sorted(TOKENIZER_FILES),
    *_ADAPTER,
    *_QUANTISED,
)
_DTYPE_KEYS = ("dtype", "torch_dtype")
_TIE_KEY = "tie_word_embeddings"


def side_files(plan: Plan, donor: Folder) -> dict[str, bytes]:
    """config.json and everything that is copied from the donor, by file name.

    Raises:
        SourceError: A file of the donor's is gone or cannot be read.
    """
    sizes = donor.sizes()
    reasons = left_out(plan, donor)
    files = {}
    for name in plan.donor.side_files:
        if name in reasons:
            continue
        if name not in sizes:
            raise SourceError(
                f"{plan.donor.label}: {name} was there when the merge was planned and is gone; "
                "put it back, or plan again",
                source=plan.donor.label,
                file=name,
            )
        files[name] = donor.read(name, 0, sizes[name])
        if donor.pin(name) != plan.donor.side_pins.get(name, donor.pin(name)):
            raise SourceError(
                f"{plan.donor.label}: {name} changed since the merge was planned; plan again",
                source=plan.donor.label,
                file=name,
            )
    if CONFIG_NAME in files:
        files[CONFIG_NAME] = fitted_config(plan, files[CONFIG_NAME])
    return files


def left_out(plan: Plan, donor: Folder) -> dict[str, str]:
    """The donor's files that are not copied, and why. Weights are not among a donor's side files.

    Folders, such as `additional_chat_templates`, are no part of a source and not seen at all.
    """
    sizes = donor.sizes()
    reasons = {name: why_left_out(name, sizes.get(name, 0)) for name in plan.donor.side_files}
    return {name: reason for name, reason in reasons.items() if reason}


def why_left_out(name: str, size_bytes: int) -> str | None:
    """Why a file beside a model's weights is not copied to a merge of it, or None if it is."""
    lower = name.lower()
    for reason, patterns in _NOT_COPIED.items():
        for pattern in patterns:
            # `scheduler.py` may be code of the model, `scheduler.pt` is not.
            code = lower.endswith(".py") and not pattern.endswith(".py")
            if fnmatchcase(lower, pattern) and not (code and reason == _OF_TRAINING):
                return reason
    if size_bytes > MAX_COPIED_BYTES:
        return f"{format_bytes(size_bytes)}, over {format_bytes(MAX_COPIED_BYTES)}"
    return None


def changes_loading(name: str) -> bool:
    """Whether a file beside the weights, left by another model, changes how a model is loaded."""
    return name.endswith(WEIGHTS) or any(fnmatchcase(name.lower(), one) for one in _LOADED)


def fitted_config(plan: Plan, raw: bytes) -> bytes:
    """The donor's config.json with the output's precision, tie and layers, all else as it was.

    Written as transformers does, with the donor's order of keys, or as it came if it was true.
    """
    config = parse_config(raw, file=CONFIG_NAME, source=plan.donor.label)
    before = json.dumps(config)
    _set_plain(config)
    parameters: Counter[DType] = Counter()
    for node in plan.nodes:
        parameters[node.slot.dtype] += node.inputs[0].num_elements
    set_dtype(config, parameters)
    _set_tie(plan, config)
    _set_layers(plan, config)
    if json.dumps(config) == before:
        return raw
    return json.dumps(config, indent=2).encode() + b"\n"


def set_dtype(config: dict[str, Any], parameters: Mapping[DType, int]) -> None:
    """Where the config names a precision, name that of most parameters.

    A section that is not the language model's, such as a vision tower, is another matter as long as
    some tensors are of another precision: they may well be its own.
    """
    counts = {dtype: count for dtype, count in parameters.items() if dtype.mergeable}
    if not counts:
        return
    most = max(counts, key=lambda dtype: counts[dtype]).torch_name
    of_language = [id(section) for section in config_sections(config)]
    for section in _sections(config):
        if len(counts) > 1 and id(section) not in of_language:
            continue
        for key in _DTYPE_KEYS:
            if _names_dtype(section.get(key)) or (section is config and key in section):
                section[key] = most


def _set_plain(config: dict[str, Any]) -> None:
    """The output holds weights, whatever codes the donor held."""
    for section in config_sections(config):
        for key in CONFIG_KEYS:
            assert isinstance(section, dict)
            section.pop(key, None)


def _names_dtype(value: object) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in OUTPUT_DTYPES


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and, at any depth, its parts called `..._config`."""
    yield config
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            yield from _sections(value)


def _set_layers(plan: Plan, config: dict[str, Any]) -> None:
    for edit in plan.config_edits:
        *path, key = edit.path
        section = config
        for name in path:
            section = section[name]
        section[key] = edit.value


def _lineage(plan: Plan) -> Iterator[tuple[Recipe, TiePolicy | None]]:
    """The stages that the donor's files come through, and how each treats the head."""
    policies = {stage.name: stage.tie for stage in plan.stages}
    for stage in plan.recipe.lineage:
        yield stage, plan.tie if stage is plan.recipe else policies[str(stage.name)]


def _set_tie(plan: Plan, config: dict[str, Any]) -> None:
    """Say what the files hold: tied exactly where they have no head.

    Where the donor's config says nothing, loaders go by the model's class, which suits the donor's
    own files: something is said only if the output has a head and the donor has not, or the other
    way round.
    """
    tie = plan.tie
    names = {node.slot.name for node in plan.nodes}
    if tie is None or tie.embedding not in names:
        return
    tied = tie.head not in names
    said = [part for part in config_sections(config) if isinstance(part.get(_TIE_KEY), bool)]
    for section in said:
        assert isinstance(section, dict)
        section[_TIE_KEY] = tied
    donor_tied = any(
        policy is None or policy.tied or stage.donor.label in policy.stand_ins
        for stage, policy in _lineage(plan)
    )
    if not said and tied != donor_tied:
        config[_TIE_KEY] = tied
