"""Results as text: what `raymerge merge` and the others print for people."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from raymerge.plan.columns import columns
from raymerge.units import format_bytes

# For their names only: `verify` starts without the kernels that a merge loads.
if TYPE_CHECKING:
    from raymerge.checkpoint.verify import Verification
    from raymerge.machine import Machine
    from raymerge.plan.build import Plan
    from raymerge.runtime.convert import Conversion
    from raymerge.runtime.doctor.report import Checkup, Diagnosis, Transfer
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.inspection import GroupFigures, Inspection, PairFigures, SourceFacts
    from raymerge.runtime.simulation.fleet import Family
    from raymerge.runtime.simulation.result import Simulation


def start_lines(planned: Plan, machine: Machine) -> Iterator[str]:
    """What a merge says before it begins: what was chosen and why, and the plan's notes."""
    yield (
        f"engine {machine.engine} ({machine.why}), device {machine.device}, plan {planned.digest}, "
        f"at most {format_bytes(planned.memory.projected_host_bytes)} a worker"
    )
    yield from (f"note: {note}" for note in planned.notes)


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


def diagnosis_text(found: Diagnosis) -> str:
    """Every place with what is known of it, and a last line that counts what is wrong."""
    wrong = sum(not place.ok for place in found.places)
    lines = [line for place in found.places for line in _place_lines(place)]
    total = f"{len(found.places)} place{'s' if len(found.places) > 1 else ''}"
    return "\n".join([*lines, f"{total}: {f'{wrong} with problems' if wrong else 'ok'}"])


def _place_lines(place: Checkup) -> Iterator[str]:
    yield f"{place.url}  {place.role}"
    rows = list(place.facts.items())
    if place.latency_s is not None:
        rows.append(("latency", f"{1000 * place.latency_s:.1f} ms"))
    rows += [
        (what, _transfer(transfer))
        for what, transfer in (("read", place.read), ("wrote", place.written))
        if transfer
    ]
    rows += [("note", note) for note in place.notes]
    rows += [("problem", problem) for problem in place.problems]
    yield from (f"  {line}" for line in columns(rows))


def _transfer(transfer: Transfer) -> str:
    rate = format_bytes(round(transfer.bytes / max(transfer.seconds, 1e-6)))
    return f"{format_bytes(transfer.bytes)} in {transfer.seconds:.3f} s, {rate}/s"


MAX_PAIRS = 3
"""Pairs that have a column of their own by layer; of more, the lowest and the highest are shown."""


def inspection_text(found: Inspection) -> str:
    """Sources, figures in total, figures by layer, differences and findings."""
    parts = [
        [_fact(source) for source in found.sources],
        _columns(list(_source_rows(found))),
        _columns(list(_pair_rows(found))),
        _columns(list(_group_rows(found))),
        [f"differs: {line}" for line in found.differences],
        [f"{finding.severity}: {finding.message}" for finding in found.findings],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _fact(source: SourceFacts) -> str:
    role = "base  " if source.is_base else "source"
    rows = f", {source.vocabulary_rows:,} rows" if source.vocabulary_rows else ""
    return (
        f"{role}  {source.label}  {source.tensors} tensors, {source.parameters:,} parameters, "
        f"{source.dtype}{rows}  {source.location}"
    )


def _source_rows(found: Inspection) -> Iterator[Sequence[str]]:
    if found.base is None:
        yield "source", "|weights|", "tensors"
        for source in found.total.sources:
            yield source.label, _number(source.norm), str(source.tensors)
        return
    yield "source", "|delta|/|base|", "max |delta|", "above 0.03", "unchanged", "tensors"
    for source in found.total.sources:
        shares = (_share(source.large_share), _share(source.unchanged_share))
        ratio, largest = _number(source.norm_ratio), _number(source.max_delta)
        yield source.label, ratio, largest, *shares, str(source.tensors)


def _pair_rows(found: Inspection) -> Iterator[Sequence[str]]:
    if not found.total.pairs:
        return
    if found.base is None:
        yield "pair", "cosine", "|a-b|/|a|"
        for pair in found.total.pairs:
            yield _named(pair), _cosine(pair), _number(pair.distance)
        return
    yield "pair", "cosine", "opposite signs", "both changed"
    for pair in found.total.pairs:
        shares = _share(pair.sign_conflict_share), _share(pair.both_changed_share)
        yield _named(pair), _cosine(pair), *shares


def _group_rows(found: Inspection) -> Iterator[Sequence[str]]:
    pairs = found.total.pairs
    cosines = [f"cos {_named(pair)}" for pair in pairs]
    if len(pairs) > MAX_PAIRS:
        cosines = ["lowest cos", "highest cos"]
    sources = found.total.sources if found.base else ()
    yield "by layer", *(f"|delta|/|base| {source.label}" for source in sources), *cosines
    for group in found.groups:
        ratios = [_number(source.norm_ratio) for source in group.sources] if found.base else []
        yield group.name, *ratios, *_cosines(group)


def _cosines(group: GroupFigures) -> list[str]:
    if len(group.pairs) <= MAX_PAIRS:
        return [_cosine(pair) for pair in group.pairs]
    known = sorted(pair.cosine for pair in group.pairs if pair.cosine is not None)
    return [f"{known[0]:.3f}", f"{known[-1]:.3f}"] if known else ["-", "-"]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _named(pair: PairFigures) -> str:
    return ", ".join(pair.sources)


def _cosine(pair: PairFigures) -> str:
    # Rounded first, and 0 added: -0.0004 is written 0.000.
    return "-" if pair.cosine is None else f"{round(pair.cosine, 3) + 0.0:.3f}"


def _number(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3g}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def simulation_text(found: Simulation) -> str:
    """A simulated run: figures in columns, and what they rest on."""
    return "\n".join(columns(_simulation_rows(found)))


def _simulation_rows(found: Simulation) -> Iterator[Sequence[str]]:
    fleet = found.fleet
    kind = f"{fleet.gpus_per_node} GPUs" if fleet.gpus_per_node else f"{fleet.cpus_per_node} CPUs"
    beside = f", {fleet.cpu_workers} of them on CPUs" if fleet.cpu_workers else ""
    yield "cluster", f"{fleet.nodes} nodes of {kind}, {found.workers} workers{beside}"
    yield "units", f"{found.units} in {found.shards} shards, {found.redone_units} begun again"
    yield "time", f"{found.seconds:.1f} s, once workers have started"
    if found.cost is not None:
        yield "cost", f"{found.cost:.2f} at {fleet.price_per_hour:g} an hour for each node"
    yield "workers", f"{found.utilisation:.1%} at work, {found.idle_tail:.1%} idle at the end"
    yield "bound by", f"{found.bound_by}, {found.bound_share:.1%} of what all nodes have in use"
    for what, moved in (
        ("reads", [node.bytes_read for node in found.nodes]),
        ("writes", [node.bytes_written for node in found.nodes]),
    ):
        spread = f"{format_bytes(min(moved))} to {format_bytes(max(moved))} a node"
        yield what, f"{format_bytes(sum(moved))}, {spread}"
    held = [f"{format_bytes(found.host_bytes_per_worker)} a worker"]
    held.append(f"{format_bytes(found.host_bytes_per_node)} a node")
    if found.device_bytes:
        held.append(f"{format_bytes(found.device_bytes)} a device")
    yield "peak", f"at most {', '.join(held)}"
    yield "given", _given_rates(found)


def _given_rates(found: Simulation) -> str:
    fleet = found.fleet
    lines = f"GB/s: a node reads {fleet.read_gbps:g} and writes {fleet.write_gbps:g}"
    if fleet.connection_gbps is not None:
        lines += f", a connection carries {fleet.connection_gbps:g}"
    one = "GPU" if fleet.gpus_per_node else "thread"
    lines += f", a {one} merges {_rates(fleet.merge_gbps, fleet.told)}"
    if fleet.cpu_workers:
        lines += f"; a thread beside them {_rates(fleet.cpu_merge_gbps, fleet.cpu_told)}"
    return lines


def _rates(merge_gbps: Mapping[Family, float], told: Collection[Family]) -> str:
    return ", ".join(
        f"{family} {rate:g}{'' if family in told else ' (one core, measured)'}"
        for family, rate in merge_gbps.items()
    )
