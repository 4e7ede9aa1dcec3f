"""What compare.py shows: medians and ratios as tables, and a chart as SVG. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

Run = dict[str, Any]
"""One measurement: what client.py prints, and who and what was measured."""


class Results:
    """The measurements of `contenders` x `views`, both in the order in which they are shown."""

    def __init__(
        self,
        runs: Iterable[Run],
        contenders: dict[str, str],
        views: dict[str, str],
    ) -> None:
        self.contenders = contenders
        self.views = views
        self._runs: dict[tuple[str, str], list[Run]] = {}
        for run in runs:
            self._runs.setdefault((run["contender"], run["view"]), []).append(run)

    def runs(self, contender: str, view: str) -> list[Run]:
        return self._runs.get((contender, view), [])

    def median(self, contender: str, view: str, what: str) -> float | None:
        """Over the rounds that have such a figure; None if none has."""
        found = [run[what] for run in self.runs(contender, view) if run.get(what) is not None]
        return statistics.median(found) if found else None

    def total(self, contender: str, view: str, what: str) -> int:
        return sum(run.get(what) or 0 for run in self.runs(contender, view))

    def most(self, contender: str, view: str, what: str) -> float | None:
        return max(
            (run[what] for run in self.runs(contender, view) if run.get(what) is not None),
            default=None,
        )

    def fair(self, contender: str, view: str, what: str) -> float | None:
        """The contender's figure, had the machine always been as fast as in the median.

        That is its ratio to the ceiling's in the same turns, times the median of all of those.
        Without such turns it is the plain median.
        """
        ratios = [
            run[what] / run["ceiling"][what]
            for run in self.runs(contender, view)
            if run.get(what) is not None and run.get("ceiling", {}).get(what)
        ]
        if not ratios:
            return self.median(contender, view, what)
        of_all = [
            run["ceiling"][what]
            for (_, measured), runs in self._runs.items()
            if measured == view
            for run in runs
            if run.get("ceiling", {}).get(what)
        ]
        ratio, ceiling = statistics.median(ratios), statistics.median(of_all)
        return float(ratio * ceiling)

    def failed_share(self, contender: str, view: str) -> float:
        failed = self.total(contender, view, "failed")
        return failed / (failed + self.total(contender, view, "ok")) if failed else 0.0


def number(value: float | None) -> str:
    """With about three digits, as many as such a measurement is good for."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def percent(share: float) -> str:
    """0 is none at all, and less than all is not 100 %."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{min(share * 100, 99.9) if share < 1 else 100:.3g} %"


DETAILS: dict[str, Callable[[Results, str, str], str]] = {
    "requests/s": lambda r, c, v: number(r.fair(c, v, "per_second")),
    "ratio": lambda r, c, v: number(r.median(c, v, "ratio")),
    "CPU ms": lambda r, c, v: number(r.fair(c, v, "server_cpu_ms")),
    "round trips": lambda r, c, v: number(r.median(c, v, "round_trips")),
    "p50 ms": lambda r, c, v: number(r.median(c, v, "p50_ms")),
    "p99 ms": lambda r, c, v: number(r.median(c, v, "p99_ms")),
    "max ms": lambda r, c, v: number(r.most(c, v, "max_ms")),
    "failed": lambda r, c, v: percent(r.failed_share(c, v)),
    "connections": lambda r, c, v: number_of(r.most(c, v, "connections")),
}


def number_of(things: float | None) -> str:
    return "-" if things is None else f"{things:.0f}"


def summary(results: Results, what: str) -> list[list[str]]:
    """One of DETAILS: contenders are rows, views are columns; failures are in the cell."""

    def cell(contender: str, view: str) -> str:
        failed = results.failed_share(contender, view)
        shown = DETAILS[what](results, contender, view)
        return f"{shown} ({percent(failed)} failed)" if failed else shown

    head = ["", *results.views.values()]
    rows = [
        [title, *(cell(contender, view) for view in results.views)]
        for contender, title in results.contenders.items()
    ]
    return [head, *rows]


def details(results: Results, view: str) -> list[list[str]]:
    """All that was measured of one view."""
    rows = [
        [title, *(show(results, contender, view) for show in DETAILS.values())]
        for contender, title in results.contenders.items()
        if results.runs(contender, view)
    ]
    return [["", *DETAILS], *rows]


def as_text(table: Sequence[Sequence[str]]) -> str:
    """For a terminal: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.replace("`", "").ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- The chart ----------------------------------------------------------------------------------

NAME_WIDTH, PANEL, GAP, BAR, HEAD = 260, 130, 16, 20, 34

# An image has no say in the page around it, but it can ask whether that is dark.
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .view { font-weight: 600 }
  .bar { fill: #8c959f }
  .ours { fill: #1f6feb }
  .failed { fill: #cf222e }
  .note { font-size: 11px; fill: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .bar { fill: #656c76 }
    .ours { fill: #4493f8 }
    .failed { fill: #f85149 }
    .note { fill: #9198a1 }
  }
"""


def chart(results: Results, views: Sequence[str], *, ours: str, note: str) -> str:
    """Requests a second as bars: a panel for each view, a row for each contender.

    `ours` is how the names begin that stand out. The red end of a bar is the share of requests
    that failed, on top of the ones that were served.
    """
    width = NAME_WIDTH + len(views) * (PANEL + GAP)
    height = HEAD + len(results.contenders) * BAR + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(note)}</title>",
        f"<style>{STYLE}</style>",
    ]
    for row, (contender, title) in enumerate(results.contenders.items()):
        y = HEAD + row * BAR + 14
        parts.append(f'<text x="0" y="{y}">{escape(title.replace("`", ""))}</text>')
        for column, view in enumerate(views):
            x = NAME_WIDTH + column * (PANEL + GAP)
            parts += _bar(results, contender, view, x, y, ours=contender.startswith(ours))
    for column, view in enumerate(views):
        x = NAME_WIDTH + column * (PANEL + GAP)
        parts.append(f'<text class="view" x="{x}" y="18">{escape(results.views[view])}</text>')
    parts.append(f'<text class="note" x="0" y="{height - 6}">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _bar(
    results: Results, contender: str, view: str, x: float, y: float, *, ours: bool
) -> list[str]:
    served = results.fair(contender, view, "per_second")
    if served is None:
        return [f'<text class="note" x="{x}" y="{y}">not measured</text>']
    failed = results.failed_share(contender, view)
    # Room for the figure to the right of the longest bar.
    scale = (PANEL - 40) / max(_attempted(results, each, view) for each in results.contenders)
    length = served * scale
    lost = _attempted(results, contender, view) * scale - length
    kind = "bar ours" if ours else "bar"
    parts = [f'<rect class="{kind}" x="{x}" y="{y - 11}" width="{length:.1f}" height="14"/>']
    if failed:
        parts.append(
            f'<rect class="failed" x="{x + length:.1f}" y="{y - 11}" '
            f'width="{lost:.1f}" height="14"/>'
        )
    parts.append(
        f'<text class="note" x="{x + length + lost + 5:.1f}" y="{y}">{number(served)}</text>'
    )
    return parts


def _attempted(results: Results, contender: str, view: str) -> float:
    """Served a second and failed a second; 1 at least, so that nothing is divided by zero."""
    served = results.fair(contender, view, "per_second") or 0.0
    failed = results.failed_share(contender, view)
    # With everything failed there is no rate to scale the share by.
    return max(served / (1 - failed), 1.0) if failed < 1 else 1.0
