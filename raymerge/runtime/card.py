"""The model card: what was merged and how, for people and for the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.checkpoint.index import RECORD_NAME
from raymerge.methods.registry import KnobValue
from raymerge.plan.build import Plan
from raymerge.plan.explain import (
    adapter_figures,
    format_range,
    joined,
    knob_ranges,
    named_sources,
)
from raymerge.plan.graph import CopyStep, PlannedSource, TensorNode
from raymerge.recipe import Recipe
from raymerge.runtime.record import raymerge_version

CARD_NAME = "README.md"
_HUB_URL = re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+?)(?:@(.*?))?/?")
_HUB_CACHE = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)/snapshots/")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def model_card(plan: Plan, *, on_hub: bool = False) -> bytes:
    """README.md: what was merged and how, with the front matter that the Hub reads.

    Locations do not go into it, for they may be private: a source is a Hub repository or a label.
    The recipe does, as it was written, with whatever locations its author put there.

    In `base_model` the Hub looks for its own ids: replace labels there before an upload.

    Args:
        plan: What was merged.
        on_hub: Leave out sources that are not on the Hub, which refuses a card that names them.
    """
    ids = {source.label: hub_id(source) for source in plan.merged}
    models = dict.fromkeys(found or label for label, found in ids.items() if found or not on_hub)
    front: dict[str, Any] = {"base_model": list(models), "base_model_relation": "merge"}
    if not models:
        front = {}
    if CONFIG_NAME in plan.donor.side_files:
        front["library_name"] = "transformers"
    stages = (*plan.recipe.stages, plan.recipe)
    front["tags"] = ["merge", "raymerge", *dict.fromkeys(each.method.name for each in stages)]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_title(plan)}",
        _made_by(plan),
        *(_stage_parts(plan) if plan.stages else _settings(plan)),
        "## Recipe\n\n" + _fenced(plan.recipe.text.strip("\n"), "yaml"),
        _made_again(plan),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _settings(plan: Plan) -> Iterator[str]:
    yield "## Sources\n\n" + "\n".join(_source_table(plan))
    yield _shared_settings(plan)


def _title(plan: Plan) -> str:
    *labels, last = (source.label for source in plan.merged)
    return _plain(f"Merge of {', '.join(labels)} and {last}" if labels else last)


def _made_by(plan: Plan) -> str:
    method = plan.recipe.method
    return (
        f"Merged with raymerge {raymerge_version()} by **{method.name}** "
        f"({_paper_link(method.paper)}): {method.summary}"
    )


def _made_again(plan: Plan) -> str:
    # The seed is given although the recipe may have it: `--seed` overrides what the recipe says.
    # Where stages have seeds of their own nothing has overridden them, and one would.
    one_seed = all(stage.seed == plan.recipe.seed for stage in plan.recipe.stages)
    seed = f" --seed {plan.recipe.seed}" if one_seed else ""
    return (
        f"## Again\n\n`raymerge merge recipe.yaml OUT{seed}`, with the recipe "
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


def _revision(source: PlannedSource) -> str:
    """The commit that was read, where the location names it."""
    pinned = _HUB_URL.fullmatch(source.location)
    return (pinned and pinned[2]) or source.revision or ""


def _stage_parts(plan: Plan) -> Iterator[str]:
    """The sections on a recipe of several stages: its checkpoints, then what became of them."""
    sources = [_row("source", "role", "repository", "revision"), _row(*["---"] * 4)]
    for source in plan.sources:
        roles = [f"in {name}" for name in plan.used_by(source)]
        roles += [adapter_figures(source.adapter)] if source.adapter else []
        roles += plan.gives(source)
        where = hub_id(source) or ""
        sources.append(_row(source.label, ", ".join(roles), where, _revision(source)))
    yield "## Sources\n\n" + "\n".join(sources)
    rows = [_row("stage", "method", "sources", "settings"), _row(*["---"] * 4)]
    stages = [*((each.recipe, each.nodes) for each in plan.stages), (plan.recipe, plan.nodes)]
    for stage, nodes in stages:
        name = stage.name or "output"
        rows.append(_row(name, stage.method.name, named_sources(stage), _inline(stage, nodes)))
    told = "Each stage's result is rounded to its dtype; none but the last is written."
    yield "## Stages\n\n" + "\n".join(rows) + f"\n\n{told}"


def _inline(stage: Recipe, nodes: Iterable[TensorNode]) -> str:
    """A stage's settings: values of a knob per source have slashes between them."""
    shown = {
        name: value if isinstance(value, str) else joined(value)
        for name, value in _knob_ranges(nodes).items()
    }
    if stage.dtype:
        shown["dtype"] = stage.dtype.torch_name
    shown["seed"] = str(stage.seed)
    return ", ".join(f"{name} {value}" for name, value in shown.items())


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
        roles += plan.gives(source)
        values = [
            format_range(found) if (found := said.get((position, name))) else "" for name in own
        ]
        where = hub_id(source) or ""
        yield _row(source.label, ", ".join(roles), where, _revision(source), *values)


def _shared_settings(plan: Plan) -> str:
    shared = {name: value for name, value in _knobs(plan).items() if isinstance(value, str)}
    if plan.recipe.dtype:
        shared["dtype"] = plan.recipe.dtype.torch_name
    shared["seed"] = str(plan.recipe.seed)
    return f"For all sources: {', '.join(f'`{name}: {value}`' for name, value in shared.items())}."


def _knobs(plan: Plan) -> Mapping[str, str | tuple[str, ...]]:
    """Every knob as it was resolved; a range where it differs from tensor to tensor."""
    return _knob_ranges(plan.nodes)


def _knob_ranges(nodes: Iterable[TensorNode]) -> Mapping[str, str | tuple[str, ...]]:
    steps = {id(node.step): node.step for node in nodes}
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
