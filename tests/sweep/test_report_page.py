"""The report in a real Chromium: widths, colours, names, what it asks for, what its script does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raymerge.sweep.record import TrialRecord
from raymerge.sweep.report import write_report
from raymerge.sweep.report.marks import PALETTE
from tests.chromium import Chromium, Page, chromium, find_chromium, page
from tests.sweep.reported import GATES, failed, grid, many, path, record

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$"
SWEEPS: dict[str, Sequence[TrialRecord]] = {
    "grid": grid(),
    "many": many(60, axes=9, tasks=5),
    "path": path(),
    "failed": [failed("trial-" + "long-name-" * 20, error="no such file: " + "x" * 300)],
    "empty": [],
    "hostile": [
        record({HOSTILE: HOSTILE}, {HOSTILE: 0.5, "b": 0.1}, name=HOSTILE, text=HOSTILE),
        record({HOSTILE: "b"}, {HOSTILE: 0.4, "b": 0.2}, name="b", missed=(HOSTILE,)),
    ],
}
FAULTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
CONTRASTS = """
(() => {
  const parse = (colour) => {
    const numbers = colour.match(/[\\d.]+/g).map(Number);
    return colour.startsWith("color(") ? numbers.map((n, i) => i < 3 ? n * 255 : n) : numbers;
  };
  const bright = (colour) => parse(colour).slice(0, 3)
    .map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (parse(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = new Set();
  for (const element of document.body.querySelectorAll("*")) {
    const written = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!written || !element.checkVisibility() || element.matches("script, title, desc")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [bright(element.matches("text") ? style.fill : style.color),
                    bright(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...faint];
})()
"""
CLIPPED = """
[...document.querySelectorAll("svg[role=img]")].flatMap((svg) => {
  const { x, y, width, height } = svg.viewBox.baseVal;
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBBox();
    return box.x < x - 1 || box.y < y - 1 || box.x + box.width > x + width + 1
      || box.y + box.height > y + height + 1;
  }).map((text) => text.textContent);
})
"""
VISIBLE_ROWS = '[...document.querySelectorAll("#trials tbody tr")].filter((row) => !row.hidden)'


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """Chromium, running."""
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium, or RAYMERGE_CHROMIUM=/path/to/it")
    with chromium(program) as running:
        yield running


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each sweep."""
    return {
        name: write_report(tmp_path_factory.mktemp(name), records, gates=GATES)
        for name, records in SWEEPS.items()
    }


@pytest.fixture
def shown(browser: Chromium, reports: dict[str, Path]) -> Iterator[Page]:
    """The report of the grid on a desktop."""
    with page(browser, reports["grid"]) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", SWEEPS)
def test_it_fits_can_be_read_and_asks_for_nothing(
    name: str, width: int, *, dark: bool, browser: Chromium, reports: dict[str, Path]
) -> None:
    with page(browser, reports[name], width=width, dark=dark) as opened:
        scheme = PALETTE["page"][dark]
        rgb = ", ".join(str(int(scheme[at : at + 2], 16)) for at in (1, 3, 5))
        assert opened("getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
        assert opened("document.documentElement.scrollWidth") <= width
        opened('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
        assert opened("document.documentElement.scrollWidth") <= width
        assert opened(CONTRASTS) == []
        assert opened(CLIPPED) == []
        assert opened.told(*FAULTS) == []
        asked = [told["request"]["url"] for told in opened.told("Network.requestWillBeSent")]
        assert asked == [reports[name].as_uri(), "data:,"][: len(asked)]


def until(shown: Page, condition: str) -> None:
    """Wait for something that a script does later on, for ten seconds at most."""
    assert shown(f"""
        new Promise((go) => {{
          const end = Date.now() + 10_000;
          const look = () => {{
            const met = {condition};
            if (met || Date.now() > end) go(met); else setTimeout(look, 5);
          }};
          look();
        }})
    """)


def test_every_chart_has_a_name_and_a_table(shown: Page) -> None:
    names = shown.names("image")
    assert len(names) == shown('document.querySelectorAll("figure").length') > 0
    assert len(set(names)) == len(names)
    assert any(name.startswith("Score against w. Best at w = 0.6") for name in names)
    assert shown("""
        [...document.querySelectorAll("figure")].every((figure) =>
          figure.querySelectorAll("tbody tr").length > 0)
    """)


def test_everything_that_is_used_has_a_name(shown: Page) -> None:
    shown('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
    for role in ("button", "link", "region", "combobox", "navigation"):
        names = shown.names(role)
        assert names, role
        assert all(names), role


def test_the_table_is_sorted_by_a_click(shown: Page) -> None:
    score = 'document.querySelectorAll("#trials thead button")[1].click()'
    column = f"{VISIBLE_ROWS}.map((row) => row.cells[1].textContent.trim())"
    shown(score)
    falling = [float(text) for text in shown(column) if text != "\N{EN DASH}"]
    assert falling == sorted(falling, reverse=True)
    assert shown('document.querySelectorAll("#trials thead th")[1].ariaSort') == "descending"
    shown(score)
    rising = [float(text) for text in shown(column) if text != "\N{EN DASH}"]
    assert rising == falling[::-1]
    assert shown('document.querySelectorAll("[aria-sort]").length') == 1


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [
        ("clears", {"kept", "cleared"}),
        ("missed", {"missed"}),
        ("gate math", {"missed", "stopped"}),
        ("kind failed", {"failed"}),
    ],
)
def test_a_filter_hides_rows_and_fades_their_marks(
    chosen: str, kinds: set[str], shown: Page
) -> None:
    shown(f"""
        const filter = document.querySelector("#filter");
        filter.value = {chosen!r};
        filter.dispatchEvent(new Event("change"));
    """)
    assert set(shown(f"{VISIBLE_ROWS}.map((row) => row.dataset.kind)")) == kinds
    left = set(shown(f"{VISIBLE_ROWS}.map((row) => row.dataset.trial)"))
    clear = """[...document.querySelectorAll(".mark:not(.off)")].map((m) => m.dataset.trial)"""
    assert set(shown(clear)) <= left
    assert shown('document.querySelector("#count").textContent') == f"{len(left)} of 20"


def test_a_recipe_is_copied(shown: Page) -> None:
    allowed = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    shown.browser.call("Browser.grantPermissions", permissions=allowed)
    shown.call("Page.bringToFront")
    shown('location.hash = "#t1"')
    until(shown, 'document.querySelector("#t1").open')
    shown('document.querySelectorAll("#t1 .code button")[1].click()')
    until(shown, 'document.querySelectorAll("#t1 .code button")[1].textContent === "Copied"')
    text = shown('document.querySelectorAll("#t1 .code pre")[1].textContent')
    assert text == shown("navigator.clipboard.readText()")
    assert text.startswith("merge_method: linear\n")


def test_a_mark_that_is_pointed_at_says_its_values(shown: Page) -> None:
    point = 'document.querySelector("#axes .mark[data-trial=\\"1\\"]")'
    shown(f'{point}.scrollIntoView({{block: "center", behavior: "instant"}})')
    box = shown(f"{point}.getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shown.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tip = shown('document.querySelector("#tip").textContent')
    assert tip.startswith("#1: w 0.6, score 0.638798")
    assert shown('document.querySelectorAll(".mark.on").length') >= 3


def test_it_is_whole_without_a_script(browser: Chromium, reports: dict[str, Path]) -> None:
    with page(browser, reports["grid"], script=False) as opened:
        names = opened.names("image")
        assert len(names) == 6
        assert len(opened.names("row")) > 20
        assert opened.names("combobox") == []


def test_hostile_names_are_text(browser: Chromium, reports: dict[str, Path]) -> None:
    with page(browser, reports["hostile"]) as opened:
        assert opened('document.querySelectorAll("script").length') == 1
        assert opened('document.querySelectorAll("img").length') == 0
        assert opened('document.querySelector("#t1 .code:last-child pre").textContent') == HOSTILE
