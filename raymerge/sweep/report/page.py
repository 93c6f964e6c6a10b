"""The page: everything in one file, which asks nothing of a network."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from raymerge.sweep.report.marks import PALETTE, Chart
from raymerge.sweep.report.ranking import Board, Kind
from raymerge.sweep.report.ranking_table import ranking_table
from raymerge.sweep.report.svg import FONT, page_svg, style
from raymerge.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Charts of one kind, under one heading."""

    key: str
    title: str
    about: str
    charts: tuple[Chart, ...]


def render_page(
    board: Board,
    sections: Sequence[Section],
    *,
    whole: Board,
    title: str,
    out: str,
    files_at: str,
    endings: Sequence[str],
) -> str:
    """The HTML.

    Args:
        board: What it shows.
        sections: And the charts of it.
        whole: All trials, of which the page counts what it does not show.
        title: Of the page.
        out: Folder of the sweep, as its commands are told it.
        files_at: Where the charts' files are, from the page.
        endings: Of those files.
    """
    # It loads with the report alone.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Ours, none of it a user's; the rest is escaped by the template.
    script, css = _part("page.js"), _colours() + style() + _part("page.css")
    hashed = b64encode(sha256(script.encode()).digest()).decode()
    return environment.from_string(_part("page.html")).render(
        board=board,
        sections=sections,
        table=ranking_table(board),
        title=title,
        tiles=_tiles(whole),
        num_trials=len(whole.trials),
        best=board.trials[0] if board.scored and board.trials else None,
        svg=lambda chart: Markup(page_svg(chart)),  # noqa: S704 - it escapes what is in it
        css=Markup(css),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{hashed}'",
        command=lambda name: shlex.join(["raymerge", "reproduce", out, name]),
        files_at=files_at,
        endings=endings,
    )


def _tiles(board: Board) -> list[tuple[str, str]]:
    counts: dict[Kind, int] = dict.fromkeys(("kept", "missed", "stopped", "failed"), 0)
    for trial in board.trials:
        if trial.kind in counts:
            counts[trial.kind] += 1
    words = {"missed": "miss a gate"}
    return [
        ("trials", str(len(board.trials))),
        *((words.get(kind) or board.words(kind), str(n)) for kind, n in counts.items() if n),
        ("read", format_bytes(sum(trial.record.bytes_read for trial in board.trials))),
        ("written", format_bytes(sum(trial.record.bytes_written for trial in board.trials))),
    ]


def _colours() -> str:
    """A variable per colour."""
    light, dark = (
        "".join(f"--{name}:{colours[scheme]};" for name, colours in PALETTE.items())
        for scheme in (0, 1)
    )
    return f":root{{--font:{FONT};{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
