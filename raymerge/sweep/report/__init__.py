"""The report of a sweep, as a page and as pictures: `write_report`.

ranking        trials in order, and what each came to
marks          what charts are drawn with; svg and png write it
scales, frame  axes, grids, legends, a point per trial
by_axis, pareto, parallel, path, cost   the charts
page           the HTML, by page.html, page.css and page.js
write          the files
"""

from __future__ import annotations

from raymerge.sweep.report.write import write_report

__all__ = ["write_report"]
