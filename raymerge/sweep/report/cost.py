"""What each trial cost: seconds and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raymerge.sweep.report.frame import HEIGHT, WIDTH, box_for, frame, legend
from raymerge.sweep.report.marks import Bar, Chart, Colour, Mark, Table
from raymerge.sweep.report.ranking import Board
from raymerge.sweep.report.scales import linear, shown

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_MAX_BAR_PX = 26.0


def cost_charts(board: Board) -> Iterator[Chart]:
    """A chart of seconds and one of bytes, where there are any."""
    times = [(trial.record.seconds, trial.evaluation_seconds) for trial in board.trials]
    if any(map(sum, times)):
        yield _chart(board, "seconds", "s", (("merge", "score3"), ("evaluation", "score1")), times)
    sizes = [(trial.record.bytes_read, trial.record.bytes_written) for trial in board.trials]
    power, most = 0, max(map(sum, sizes), default=0)
    if not most:
        return
    while most >= _STEP and power < len(_UNITS) - 1:
        power, most = power + 1, most // _STEP
    scaled = [(read / _STEP**power, written / _STEP**power) for read, written in sizes]
    yield _chart(board, "bytes", _UNITS[power], (("read", "score3"), ("written", "score1")), scaled)


def _chart(
    board: Board,
    what: str,
    unit: str,
    parts: tuple[tuple[str, Colour], tuple[str, Colour]],
    figures: Sequence[tuple[float, float]],
) -> Chart:
    box, y = box_for([max(map(sum, figures))], from_zero=True)
    pitch = (box.right - box.left) / len(figures)
    x = linear([0.5, len(figures) + 0.5], box.left, box.right)
    thick = max(0.8, min(_MAX_BAR_PX, 0.72 * pitch))
    marks: list[Mark] = []
    ticks = [(box.left + (rank - 0.5) * pitch, str(rank)) for rank in _ranks(len(figures), pitch)]
    marks += frame(box, type(x)(at=x.at, ticks=tuple(ticks)), y, "rank of the trial", unit)
    for trial, values in zip(board.trials, figures, strict=True):
        left, level = box.left + (trial.rank - 0.5) * pitch - thick / 2, 0.0
        for (word, colour), value in zip(parts, values, strict=True):
            top = y.at(level + value)
            tip = f"#{trial.rank}: {word} {shown(float(value))} {unit}"
            marks.append(
                Bar(x=left, y=top, width=thick, height=y.at(level) - top, colour=colour,
                    trial=trial.rank, tip=tip)
            )  # fmt: skip
            level += value
    marks += legend(
        box.left, box.right, box.bottom + 56, [(word, colour, None) for word, colour in parts]
    )
    totals = [sum(column) for column in zip(*figures, strict=True)]
    added = " and ".join(
        f"{shown(float(f'{total:.4g}'))} {unit} {word}"
        for (word, _), total in zip(parts, totals, strict=True)
    )
    return Chart(
        name=f"cost-{what}",
        title=f"{what.capitalize()} per trial",
        summary=f"In all {added}.",
        width=WIDTH,
        height=HEIGHT,
        marks=tuple(marks),
        table=Table(
            head=("#", "trial", *(f"{word}, {unit}" for word, _ in parts)),
            rows=tuple(
                (str(trial.rank), trial.record.name, *(shown(float(value)) for value in values))
                for trial, values in zip(board.trials, figures, strict=True)
            ),
        ),
    )


def _ranks(number: int, pitch: float) -> Iterator[int]:
    """The ranks that are written below: 1, and round ones as many as fit."""
    apart = next(step for step in (1, 2, 5, 10, 20, 50, 100, number) if step * pitch >= 28)  # noqa: PLR2004
    yield 1
    yield from range(apart if apart > 1 else 2, number + 1, apart)
