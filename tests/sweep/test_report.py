"""What a report holds: every number, every name as text, a file per chart; without a browser."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.errors import StorageError
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.report import write_report
from raymerge.sweep.report.marks import PALETTE, Bar, Chart, Dot, Line, Text, text_width
from raymerge.sweep.report.pareto import front
from raymerge.sweep.report.ranking import Ranked, make_board
from raymerge.sweep.report.scales import linear, scale_for, shown
from raymerge.sweep.report.write import MAX_SHOWN, sections_of
from tests.sweep.reported import GATES, evaluated, failed, fronts, grid, many, path, record

VOID = {"meta", "link", "br", "input", "img", "hr"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$\x1b[31m"
SWEEPS = {
    "grid": grid(),
    "many": many(),
    "wide": many(30, axes=14, tasks=6),
    "path": path(),
    "one": grid()[:1],
    "failed": [failed(f"trial-{n}") for n in range(3)],
    "not evaluated": [record({"w": n / 4}) for n in range(5)],
    "empty": [],
    "hostile": [
        record({HOSTILE: HOSTILE}, {HOSTILE: 0.5, "b": 0.1}, name=HOSTILE, text=HOSTILE),
        record({HOSTILE: "b"}, {HOSTILE: 0.4, "b": 0.2}, name="b", missed=(HOSTILE,)),
        failed(HOSTILE + "2", HOSTILE),
    ],
}
EACH_SWEEP = pytest.mark.parametrize("name", SWEEPS)


class Parsed(HTMLParser):
    """The cells of a page's tables, its other text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {"pre": [], "figure": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in self.texts:
            self.texts[tag].append("")
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.texts.keys() & set(self.open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def charts(records: Sequence[TrialRecord]) -> dict[str, Chart]:
    sections = sections_of(make_board(records, {}))
    return {chart.name: chart for section in sections for chart in section.charts}


def ranked(records: Sequence[TrialRecord]) -> tuple[Ranked, ...]:
    return make_board(records, {}).trials


@EACH_SWEEP
def test_the_page_is_whole_and_asks_for_nothing(name: str, tmp_path: Path) -> None:
    text = write_report(tmp_path, SWEEPS[name]).read_text("utf-8")
    page = Parsed(text)

    assert page.open == []
    assert page.tags.count("script") == 1
    assert "onerror" not in dict(page.attributes)
    for attribute, value in page.attributes:
        if attribute in {"src", "href"}:
            assert value is not None
            assert value.startswith(("#", "data:,", "report/")), value
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert len(page.texts["figure"]) == text.count('role="img"')


@EACH_SWEEP
def test_the_tables_hold_every_number(name: str, tmp_path: Path) -> None:
    records = SWEEPS[name]
    page = Parsed(write_report(tmp_path, records).read_text("utf-8"))
    cells = {cell.strip() for cell in page.cells}

    for one in records:
        said = [*one.values.values(), *([one.score] if one.score is not None else [])]
        said += [score for each in one.evaluations for score in each.scores.values()]
        assert {shown(value) for value in said} - cells - {HOSTILE} == set()
        assert one.name in cells
        assert {cell for cell in cells if all(gate in cell for gate in one.missed)}
        assert one.text in page.texts["pre"]
        assert one.error is None or one.error in page.texts["pre"]


@EACH_SWEEP
def test_every_chart_is_a_file_of_each_kind(name: str, tmp_path: Path) -> None:
    page = Parsed(write_report(tmp_path, SWEEPS[name]).read_text("utf-8"))
    linked = {value for key, value in page.attributes if key == "href" and value}
    found = sorted((tmp_path / "report").iterdir())

    assert {f"report/{file.name}" for file in found} == {
        link for link in linked if link.startswith("report/")
    }
    for file in found:
        content = file.read_bytes()
        if file.suffix == ".svg":
            root = ET.fromstring(content)
            assert root.get("role") == "img"
            assert root[0].tag.endswith("title")
            assert root[0].text
        else:
            width, height = struct.unpack(">II", content[16:24])
            assert content.startswith(b"\x89PNG")
            assert width >= 680
            assert height >= 500


def test_the_same_records_make_the_same_page(tmp_path: Path) -> None:
    first = write_report(tmp_path, grid()).read_bytes()
    assert write_report(tmp_path, grid()).read_bytes() == first


def test_a_chart_of_an_earlier_report_goes(tmp_path: Path) -> None:
    write_report(tmp_path, grid())
    assert (tmp_path / "report" / "parallel.svg").exists()
    write_report(tmp_path, path())
    assert sorted(file.stem for file in (tmp_path / "report").glob("*.svg")) == [
        "cost-bytes", "cost-seconds", "path-digits",
    ]  # fmt: skip


def test_of_very_many_trials_the_best_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    records = [record({"w": n}, {"a": n}, name=f"trial-{n}") for n in range(MAX_SHOWN + 1)]
    text = write_report(tmp_path, records).read_text("utf-8")
    assert f"the best {MAX_SHOWN} of {MAX_SHOWN + 1} trials" in text
    assert "trial-1<" in text
    assert "trial-0<" not in text


def test_a_trial_called_report_keeps_its_folder(tmp_path: Path) -> None:
    theirs = tmp_path / "report" / "logo.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    text = write_report(tmp_path, [record({"w": 1}, out=str(theirs.parent))]).read_text("utf-8")
    assert [path.name for path in theirs.parent.iterdir()] == ["logo.png"]
    assert (tmp_path / "report-2" / "cost-bytes.svg").exists()
    assert 'href="report-2/cost-bytes.svg"' in text


def test_without_matplotlib_there_are_the_page_and_the_svgs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_report(tmp_path, grid()).read_text("utf-8")
    assert {file.suffix for file in (tmp_path / "report").iterdir()} == {".svg"}
    assert ".png" not in text


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(StorageError, match=r"report\.html cannot be written"):
        write_report(tmp_path, grid())
    assert not (tmp_path / "report.html").exists()


def test_a_gate_comes_before_any_score() -> None:
    good = record({"w": 0.1}, {"a": 0.9}, missed=("a is low",))
    fair = record({"w": 0.2}, {"a": 0.2})
    kept = record({"w": 0.3}, {"a": 0.3}, state="kept")
    board = ranked([failed(), good, fair, kept])
    assert [trial.kind for trial in board] == ["kept", "cleared", "missed", "failed"]
    assert [trial.rank for trial in board] == [1, 2, 3, 4]


def test_the_scores_shown_are_those_on_the_most_examples() -> None:
    one = record({"w": 0.5}, {"a": 0.5})
    early = evaluated(one.name, {"a": 0.9}, subset=16)
    later = evaluated(one.name, {}, error="it hung")
    final = evaluated(one.name, {"a": 0.1}, split="final")
    [trial] = ranked([replace(one, evaluations=(early, *one.evaluations, later, final))])
    assert trial.scores == {"a": 0.5}
    assert trial.final == {"a": 0.1}
    [stopped] = ranked([replace(one, evaluations=(early,))])
    assert (stopped.kind, stopped.scores) == ("stopped", {"a": 0.9})
    [hung] = ranked([replace(one, evaluations=(later,), score=None)])
    assert (hung.kind, hung.error) == ("unscored", "it hung")


def test_the_front_is_of_three_tasks_too() -> None:
    points = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.4, 0.4, 0), (0.5, 0.5, 0)]
    tasks = ("a", "b", "c")
    trials = ranked(
        [record({"n": n}, dict(zip(tasks, point, strict=True))) for n, point in enumerate(points)]
    )
    assert {trial.record.values["n"] for trial in front(trials, tasks)} == {0, 1, 2, 3, 5}
    named = {name for name in charts([t.record for t in trials]) if name.startswith("pareto")}
    assert named == {"pareto-a-b", "pareto-a-c", "pareto-b-c"}


def test_a_trial_that_misses_a_gate_is_on_no_front() -> None:
    best = record({"n": 0}, {"a": 1, "b": 1}, missed=("a",))
    other = record({"n": 1}, {"a": 0, "b": 0})
    trials = ranked([best, other])
    assert [trial.record.values["n"] for trial in front(trials, ("a", "b"))] == [1]


def test_a_sweep_ranked_by_fronts_shows_tasks_and_not_scores(tmp_path: Path) -> None:
    text = write_report(tmp_path, fronts(), gates=GATES, by_fronts=True).read_text("utf-8")
    named = {file.stem for file in (tmp_path / "report").glob("*.svg")}
    assert {"math-by-w", "code-by-w", "math-by-density", "pareto-math-code"} <= named
    assert not {name for name in named if name.startswith("score-")}
    assert "First of the best front" in text


def test_ranks_are_those_of_the_choice() -> None:
    records = [record({"n": n}, {"a": n}, rank=3 - n) for n in range(3)]
    assert [trial.record.rank for trial in ranked(records)] == [1, 2, 3]
    later = record({"n": 9}, {"a": 99})
    assert [trial.record.rank for trial in ranked([later, *records])] == [1, 2, 3, None]


def test_a_path_says_how_high_its_barrier_is() -> None:
    assert "A barrier of 0.4 at t = 0.5" in charts(path(0.4))["path-digits"].summary
    assert "No barrier" in charts(path(0.0))["path-digits"].summary
    without_end = [one for one in path() if one.values["t"] != 1]
    assert "path-digits" not in charts(without_end)
    assert "score-by-t" in charts(without_end)
    unscored = [replace(one, evaluations=()) if one.values["t"] == 1 else one for one in path()]
    assert "An end has no score" in charts(unscored)["path-digits"].summary


def test_an_axis_of_one_value_has_no_chart() -> None:
    named = charts([record({"w": w, "d": 0.5}, {"a": w}) for w in (0.1, 0.2, 0.3)])
    assert "score-by-w" in named
    assert "score-by-d" not in named
    assert "parallel" not in named


FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_an_axis_spans_its_values_and_its_ticks_differ(values: list[float]) -> None:
    scale = linear(values, 0, 300)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert -1e-6 <= places[0] <= places[-1] <= 300 + 1e-6
    labels = [label for _, label in scale.ticks]
    assert len(set(labels)) == len(labels) <= 11


def test_a_spread_axis_is_logarithmic() -> None:
    labels = [label for _, label in scale_for([1e-4, 1e-3, 1e-2, 1e-1], 0, 300).ticks]
    assert labels == ["0.0001", "0.001", "0.01", "0.1"]
    even = scale_for([0.01, 0.25, 0.5, 0.75, 1.0], 0, 300)
    assert "0.5" in [label for _, label in even.ticks]


def test_words_and_truth_have_a_place_each() -> None:
    scale = scale_for(["ties", "linear", True], 0, 300)
    assert [scale.at(value) for value in ("ties", "linear", True)] == [50, 150, 250]
    assert [label for _, label in scale.ticks] == ["ties", "linear", "true"]


@EACH_SWEEP
def test_nothing_is_drawn_outside_of_its_chart(name: str) -> None:
    for chart in charts(SWEEPS[name]).values():
        for mark in chart.marks:
            for x, y in corners(mark):
                assert -1 <= x <= chart.width + 1, (chart.name, mark)
                assert -1 <= y <= chart.height + 1, (chart.name, mark)


def corners(mark: Line | Dot | Bar | Text) -> list[tuple[float, float]]:
    match mark:
        case Line():
            return list(mark.points)
        case Dot():
            r = mark.radius
            return [(mark.x - r, mark.y - r), (mark.x + r, mark.y + r)]
        case Bar():
            return [(mark.x, mark.y), (mark.x + mark.width, mark.y + mark.height)]
        case Text():
            wide = text_width(mark.text, mark.size)
            left = {"start": 0.0, "middle": wide / 2, "end": wide}[mark.anchor]
            return [(mark.x - left, mark.y - mark.size), (mark.x - left + wide, mark.y)]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_card(scheme: int) -> None:
    text = {"ink", "muted", "accent", "kept", "cleared", "missed", "stopped", "failed"}
    for name, colours in PALETTE.items():
        if name not in {"page", "card", "rule"}:
            least = 4.5 if name in text else 3.0
            for behind in ("card", "page") if name in text else ("card",):
                assert contrast(colours[scheme], PALETTE[behind][scheme]) >= least, (name, behind)


def contrast(first: str, second: str) -> float:
    """As WCAG 2.2 defines it."""
    light, dark = sorted(map(luminance, (first, second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(k * c for k, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
