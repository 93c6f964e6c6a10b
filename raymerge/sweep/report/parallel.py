"""All axes side by side: a line per trial, through its values to its score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raymerge.sweep.report.frame import HEIGHT, WIDTH, legend
from raymerge.sweep.report.marks import Chart, Line, Mark, Table, Text, cut
from raymerge.sweep.report.ranking import Board, Ranked
from raymerge.sweep.report.scales import Scale, scale_for, shown
from raymerge.sweep.trial import Value

_APART = 130.0
"""Pixels between two axes."""
_TOP = 44.0
_BOTTOM = HEIGHT - 44.0
_SIDE = 58.0
_SHADES = 5


def parallel_chart(board: Board) -> Chart | None:
    """The chart; None where fewer than two axes have several values."""
    trials = [
        trial
        for trial in board.scored
        if all(axis in trial.record.values for axis in board.axes)
        and all(measure.of(trial) is not None for measure in board.measures)
    ]
    columns: dict[str, list[Value]] = {}
    for axis in board.axes:
        values = [trial.record.values[axis] for trial in trials]
        if len(set(values)) > 1:
            columns[axis] = values
    if len(columns) < 2:  # noqa: PLR2004 - of one there is a chart already
        return None
    num_axes = len(columns)
    for measure in board.measures:
        # No axis has such a name: a blank is none that a recipe can use.
        columns[f" {measure.name}"] = [value for _, value in measure.pairs(trials)]
    width = max(WIDTH, 2 * _SIDE + (len(columns) - 1) * _APART)
    gap = (width - 2 * _SIDE) / (len(columns) - 1)
    scales = {name: scale_for(values, _BOTTOM, _TOP) for name, values in columns.items()}
    places = {name: _SIDE + number * gap for number, name in enumerate(columns)}
    marks: list[Mark] = list(_lines(trials, columns, scales, places))
    for name, scale in scales.items():
        marks += _axis(name, scale, places[name], gap)
    ramp = ["low score", *[""] * (_SHADES - 2), "high score"]
    shades = [(words, f"score{number}", None) for number, words in enumerate(ramp)]
    return Chart(
        name="parallel",
        title="Values and score of every trial",
        summary=f"{len(trials)} lines over {num_axes} axes; the darker and thicker on a "
        "light page, the brighter on a dark one, the better.",
        width=width,
        height=HEIGHT,
        marks=(*marks, *legend(_SIDE, width, HEIGHT - 10, shades)),
        table=Table(
            head=("#", "trial", *(name.strip() for name in columns)),
            rows=tuple(
                (str(trial.rank), trial.record.name, *(shown(v[n]) for v in columns.values()))
                for n, trial in enumerate(trials)
            ),
        ),
    )


def _lines(
    trials: Sequence[Ranked],
    columns: Mapping[str, Sequence[Value]],
    scales: Mapping[str, Scale],
    places: Mapping[str, float],
) -> Iterator[Line]:
    """From the worst score to the best, which so is on top."""
    scores = [trial.record.score or 0.0 for trial in trials]
    worst_first = sorted(range(len(trials)), key=scores.__getitem__)
    for position, number in enumerate(worst_first):
        trial = trials[number]
        shade = _SHADES * position // len(trials) if len(trials) > 1 else _SHADES - 1
        yield Line(
            points=tuple(
                (places[name], scales[name].at(values[number])) for name, values in columns.items()
            ),
            colour="missed" if trial.record.missed else f"score{shade}",
            width=1.0 + 0.35 * shade,
            dashed=bool(trial.record.missed),
            trial=trial.rank,
            tip=f"#{trial.rank}: score {shown(scores[number])}",
        )


def _axis(name: str, scale: Scale, x: float, gap: float) -> Iterator[Mark]:
    yield Line(points=((x, _TOP), (x, _BOTTOM)), colour="axis", width=1.5)
    title = cut(name.strip(), gap - 8)
    yield Text(x=x, y=_TOP - 20, text=title, colour="ink", anchor="middle", bold=True)
    for y, label in scale.ticks:
        yield Line(points=((x - 4, y), (x, y)), colour="axis", width=1.5)
        yield Text(x=x - 7, y=y + 4, text=cut(label, _SIDE - 10), anchor="end", size=11, halo=True)
