"""What lies beside the shards: config, tokenizer, model card, our own record.

Pure functions from a plan and the donor's folder to bytes; publishing them is `commit`'s business.
The donor's files are copied byte for byte. Its config.json is changed where the merge made it
untrue - precision and tied head - and copied byte for byte where it did not.
"""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.checkpoint.dtypes import OUTPUT_DTYPES, DType
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.strict_json import parse_config
from raymerge.checkpoint.ties import config_sections
from raymerge.errors import SourceError
from raymerge.plan.build import Plan
from raymerge.plan.document import source_document
from raymerge.plan.explain import knob_ranges
from raymerge.plan.graph import CopyStep, PlannedSource
from raymerge.units import format_bytes

CARD_NAME = "README.md"
RECORD_NAME = "raymerge.json"

MAX_COPIED_BYTES = 256 * 2**20
"""Side files are held in memory until the commit. The largest tokenizers are some 30 MB."""

# Lower case, because a Hub repository may be of anyone's hand. What these would say of the output
# is untrue or not about a model; LICENSE and NOTICE are not among them and so travel along.
_NOT_COPIED = {
    "describes the donor": ("readme*", "raymerge.json", "mergekit_config.y*ml"),
    "hidden": (".*",),
    # A loader that finds this beside a model puts an adapter on top of it.
    "of an adapter": ("adapter_config.json",),
    "of a quantised model": (
        "quantize_config.json",
        "quant_config.json",
        "quantization_config.json",
        "hf_quant_config.json",
        "quant_strategy.json",
        "*imatrix*",
    ),
    "left by training": (
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
_DTYPE_KEYS = ("dtype", "torch_dtype")
_TIE_KEY = "tie_word_embeddings"
_HUB_URL = re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+?)(?:@[^/]*)?/?")
_HUB_CACHE = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)/snapshots/")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_VERSIONS = ("raymerge", "numpy", "numba", "torch")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard as it was written."""

    name: str
    bytes: int
    sha256: str


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
    if CONFIG_NAME in files:
        files[CONFIG_NAME] = fitted_config(plan, files[CONFIG_NAME])
    return files


def left_out(plan: Plan, donor: Folder) -> dict[str, str]:
    """The donor's files that are not copied, and why. Weights are not among a donor's side files.

    Folders, such as `additional_chat_templates`, are no part of a source and not seen at all.
    """
    sizes = donor.sizes()
    reasons = {name: _why_left_out(name, sizes.get(name, 0)) for name in plan.donor.side_files}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_left_out(name: str, size_bytes: int) -> str | None:
    for reason, patterns in _NOT_COPIED.items():
        if any(fnmatchcase(name.lower(), pattern) for pattern in patterns):
            return reason
    if size_bytes > MAX_COPIED_BYTES:
        return f"{format_bytes(size_bytes)}, over {format_bytes(MAX_COPIED_BYTES)}"
    return None


# --- config.json ---------------------------------------------------------------------------------


def fitted_config(plan: Plan, raw: bytes) -> bytes:
    """The donor's config.json with the output's precision and tie; every other value as it was.

    Written as transformers does, with the donor's order of keys, or as it came if it was true.
    """
    config = parse_config(raw, file=CONFIG_NAME, source=plan.donor.label)
    before = json.dumps(config)
    _set_dtype(plan, config)
    _set_tie(plan, config)
    if json.dumps(config) == before:
        return raw
    return json.dumps(config, indent=2).encode() + b"\n"


def _set_dtype(plan: Plan, config: dict[str, Any]) -> None:
    """Where the config names a precision, name that of most parameters.

    A section that is not the language model's, such as a vision tower, is another matter as long as
    some tensors are of another precision: they may well be its own.
    """
    parameters: Counter[DType] = Counter()
    for node in plan.nodes:
        if node.slot.dtype.mergeable:
            parameters[node.slot.dtype] += node.inputs[0].entry.num_elements
    if not parameters:
        return
    most = parameters.most_common(1)[0][0].torch_name
    of_language = [id(section) for section in config_sections(config)]
    for section in _sections(config):
        if len(parameters) > 1 and id(section) not in of_language:
            continue
        for key in _DTYPE_KEYS:
            if _names_dtype(section.get(key)) or (section is config and key in section):
                section[key] = most


def _names_dtype(value: object) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in OUTPUT_DTYPES


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and, at any depth, its parts called `..._config`."""
    yield config
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            yield from _sections(value)


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
    donor_tied = tie.tied or plan.donor.label in tie.stand_ins
    if not said and tied != donor_tied:
        config[_TIE_KEY] = tied


# --- the model card ------------------------------------------------------------------------------


def model_card(plan: Plan) -> bytes:
    """README.md: what was merged and how, with the front matter that the Hub reads.

    Locations do not go into it, for they may be private: a source is a Hub repository or a label.
    The recipe does, as it was written, with whatever locations its author put there.
    """
    method = plan.recipe.method
    repositories = dict.fromkeys(filter(None, map(hub_id, plan.sources)))
    front: dict[str, Any] = {}
    if repositories:
        front = {"base_model": list(repositories), "base_model_relation": "merge"}
    if CONFIG_NAME in plan.donor.side_files:
        front["library_name"] = "transformers"
    front["tags"] = ["merge", "raymerge", method.name]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_title(plan)}",
        _made_by(plan),
        "## Sources\n\n" + "\n".join(_source_table(plan)),
        _shared_settings(plan),
        "## Recipe\n\n" + _fenced(plan.recipe.text.strip("\n"), "yaml"),
        _made_again(plan),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _title(plan: Plan) -> str:
    *labels, last = (source.label for source in plan.sources)
    return _plain(f"Merge of {', '.join(labels)} and {last}" if labels else last)


def _made_by(plan: Plan) -> str:
    method = plan.recipe.method
    return (
        f"Merged with raymerge {raymerge_version()} by **{method.name}** "
        f"({_paper_link(method.paper)}): {method.summary}"
    )


def _made_again(plan: Plan) -> str:
    # The seed is given although the recipe may have it: `--seed` overrides what the recipe says.
    return (
        f"## Again\n\n`raymerge merge recipe.yaml OUT --seed {plan.recipe.seed}`, with the recipe "
        "above and the same sources, writes the same tensors; with the same `--shard-size` it "
        f"writes the same files. The plan's digest is `{plan.digest}`. `{RECORD_NAME}` has the "
        "identity of every file read and the sha256 of every shard written."
    )


def hub_id(source: PlannedSource) -> str | None:
    """`org/name` of a source that surely came from the Hub.

    That is an `hf://` URL, a snapshot in the Hub's cache, or a name with a revision. A bare
    `org/name` may as well be a folder, and a wrong name on a card leads to another's model.
    """
    if found := _HUB_URL.fullmatch(source.location):
        return found[1]
    if found := _HUB_CACHE.search(source.location):
        return f"{found[1]}/{found[2]}"
    if source.revision is not None and _HUB_ID.fullmatch(source.location):
        return source.location
    return None


def _source_table(plan: Plan) -> Iterator[str]:
    knobs = _knobs(plan)
    own = [name for name, values in knobs.items() if isinstance(values, tuple)]
    yield _row("source", "role", "repository", "revision", *own)
    yield _row(*["---"] * (4 + len(own)))
    labels = [source.label for source in plan.recipe.sources]
    for source in plan.sources:
        base = plan.recipe.base
        roles = ["base"] if base is not None and base.label == source.label else []
        roles += ["config and tokenizer"] if source.label == plan.donor.label else []
        values = [
            knobs[name][labels.index(source.label)] if source.label in labels else ""
            for name in own
        ]
        where = hub_id(source) or ""
        yield _row(source.label, ", ".join(roles), where, source.revision or "", *values)


def _shared_settings(plan: Plan) -> str:
    shared = {name: value for name, value in _knobs(plan).items() if isinstance(value, str)}
    if plan.recipe.dtype:
        shared["dtype"] = plan.recipe.dtype.torch_name
    shared["seed"] = str(plan.recipe.seed)
    return f"For all sources: {', '.join(f'`{name}: {value}`' for name, value in shared.items())}."


def _knobs(plan: Plan) -> Mapping[str, str | tuple[str, ...]]:
    """Every knob as it was resolved; a range where it differs from tensor to tensor."""
    steps = {id(node.step): node.step for node in plan.nodes}
    return knob_ranges([step for step in steps.values() if not isinstance(step, CopyStep)])


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Text that cannot end a table's cell or its line."""
    return " ".join(text.split()).replace("|", "\\|")


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _paper_link(paper: str) -> str:
    found = _ARXIV.fullmatch(paper)
    return f"[{paper}](https://arxiv.org/abs/{found[1]})" if found else paper


# --- our own record ------------------------------------------------------------------------------


def run_record(plan: Plan, *, shards: Sequence[ShardRecord], kernels: str | None = None) -> bytes:
    """raymerge.json: what is needed to check the output, and to make it again.

    Args:
        plan: What was run.
        shards: What was written.
        kernels: Hash of the compiled kernels' source, where they ran.
    """
    record = {
        "raymerge": raymerge_version(),
        "digest": plan.digest,
        "recipe": plan.recipe.text,
        "seed": plan.recipe.seed,
        "sources": [
            source_document(source, donor=source.label == plan.donor.label)
            for source in plan.sources
        ],
        "dropped": list(plan.dropped),
        "shards": [asdict(shard) for shard in shards],
        "versions": {"python": platform.python_version(), **_installed()},
        "kernels": kernels,
    }
    return json.dumps(record, indent=2).encode() + b"\n"


def raymerge_version() -> str:
    """The installed version; of a source tree that is not installed nothing is known."""
    return _installed().get("raymerge", "0+unknown")


def _installed() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
