"""The model card: what was merged and how, for people and for the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.checkpoint.index import RECORD_NAME
from raymerge.methods.registry import KnobValue
from raymerge.plan.build import Plan
from raymerge.plan.explain import adapter_figures, format_range, knob_ranges
from raymerge.plan.graph import CopyStep, PlannedSource
from raymerge.runtime.record import raymerge_version

CARD_NAME = "README.md"
_HUB_URL = re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+?)(?:@[^/]*)?/?")
_HUB_CACHE = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)/snapshots/")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def model_card(plan: Plan) -> bytes:
    """README.md: what was merged and how, with the front matter that the Hub reads.

    Locations do not go into it, for they may be private: a source is a Hub repository or a label.
    The recipe does, as it was written, with whatever locations its author put there.

    In `base_model` the Hub looks for its own ids: replace labels there before an upload.
    """
    method = plan.recipe.method
    models = dict.fromkeys(hub_id(source) or source.label for source in plan.sources)
    front: dict[str, Any] = {"base_model": list(models), "base_model_relation": "merge"}
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
    said = _own_knobs(plan)
    yield _row("source", "role", "repository", "revision", *own)
    yield _row(*["---"] * (4 + len(own)))
    for position, source in enumerate(plan.sources):
        base = plan.recipe.base
        roles = ["base"] if base is not None and base.label == source.label else []
        roles += [adapter_figures(source.adapter)] if source.adapter else []
        roles += ["config and tokenizer"] if source.label == plan.donor.label else []
        values = [
            format_range(found) if (found := said.get((position, name))) else "" for name in own
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


def _own_knobs(plan: Plan) -> Mapping[tuple[int, str], list[KnobValue]]:
    """The values that each source, by position, gets of each per-source knob."""
    found: dict[tuple[int, str], list[KnobValue]] = {}
    seen = {(id(n.step), tuple(one.source for one in n.inputs)): n.step for n in plan.nodes}
    for (_, positions), step in seen.items():
        knobs = {} if isinstance(step, CopyStep) else step.knobs
        for name, values in knobs.items():
            if isinstance(values, tuple):
                sources = positions[len(positions) - len(values) :]
                for position, value in zip(sources, values, strict=True):
                    found.setdefault((position, name), []).append(value)
    return found


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
