"""The status page for terminals: 80 columns, without colours, for ``watch -n1 curl -s ADDR``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from pooled_serve.status.advice import no_advice
from pooled_serve.status.load import BLOCKED_SECONDS
from pooled_serve.status.remedies import total_cap
from pooled_serve.status.sentence import lost_seconds, recent_routes
from pooled_serve.status.words import (
    NONE,
    at_most,
    count,
    duration,
    listed,
    percent,
    plural,
    rate,
    span,
    taken_elsewhere,
)

COLUMNS = 80
ROUTES = 5
WORKERS = 16
"""More of them have one line together."""

_MARKS = {"ok": "✓", "note": "i", "warn": "!", "bad": "✕"}
_BARS = "▁▂▃▄▅▆▇█"
_CHART = 50  # columns, of six seconds each


TOTALS = {
    "acquired": "acquired_total",
    "after a wait": "waited_total",
    "refused": "timeouts_total",
    "opened": "opened_total",
    "closed": "closed_total",
    "reset": "reset_total",
    "pinned": "pinned_total",
    "refused early": "shed_total",
    "failed": "failed_total",
    "unanswered": "unanswered_total",
    "database lost": "outages_total",
    "waited for the database": "outage_waits_total",
    "ran again": "retried_total",
    "ended at the server": "killed_total",
    "client gone": "client_gone_total",
    "connect errors": "connect_errors_total",
    "held too long": "leaked_total",
}
"""What is told since the start, in the words and the order of the page for browsers."""


def page(stats: Mapping[str, Any], charts: Mapping[str, Any]) -> str:
    """Returns the page.

    :param stats: as of ``/stats.json``.
    :param charts: as of ``/history.json``.
    """
    lines = [*_head(stats), *_sentences(stats)]
    for alias, pool in stats["pools"].items():
        lines += ["", *_pool(stats, alias, pool, (charts.get("pools") or {}).get(alias) or {})]
    lines += _routes(stats)
    return "".join(f"{_cut(line)}\n" for line in lines)


def advice_page(stats: Mapping[str, Any]) -> str:
    """Returns what ``--advise`` prints: how it is now, the peaks, and what they suggest."""
    advised = {(sentence["pool"], sentence["name"]) for sentence in stats.get("advice") or ()}
    lines = [*_head(stats), *_sentences(stats, besides=advised)]
    for alias, pool in stats["pools"].items():
        lines += ["", _title(alias, pool), *_peaks(pool)]
        said = [s for s in stats.get("advice") or () if s["pool"] == alias]
        for sentence in said:
            lines += _wrapped(f"{_MARKS[sentence['level']]} ", sentence)
        if not said:
            lines.append(no_advice(stats, alias))
    lines += _routes(stats)
    return "".join(f"{line}\n" for line in lines)


def _head(stats: Mapping[str, Any]) -> Iterator[str]:
    workers = plural(len(stats["workers"]), "worker")
    if starting := stats.get("starting"):
        workers += f", {count(starting)} starting"
    cpu = f" · CPU {_cpu(stats['workers'][0])}" if len(stats["workers"]) == 1 else ""
    mode = f" · {stats['pool_mode']} mode" if stats.get("pool_mode") else ""
    facts = f"{workers}{cpu}{mode} · up {span(stats['uptime_seconds'])}"
    app, room = _clean(stats["app"] or ""), COLUMNS - len(facts) - 2
    # Which application it is matters more than that it is this program.
    for name in (f"pooled-serve {stats['version']}  {app}", f"pooled-serve  {app}", app):
        if len(name) <= room:
            yield f"{name:{room}}  {facts}"
            return
    yield from (app, facts)


def _sentences(stats: Mapping[str, Any], besides: Container[tuple[str, str]] = ()) -> Iterator[str]:
    """What is the matter, and what to do.

    :param besides: pool and name of what is said elsewhere.
    """
    for sentence in stats["findings"]:
        if (sentence["pool"], sentence["name"]) in besides:
            continue
        yield from _wrapped(f"{_MARKS[sentence['level']]} ", sentence)


def _wrapped(mark: str, sentence: Mapping[str, Any]) -> Iterator[str]:
    # A number and its unit stay together.
    problem = re.sub(r"(?<=\d) (?=(?:%|ms|s|min|h|d)\b|%)", "\u00a0", _clean(sentence["problem"]))
    for line in textwrap.wrap(f"{problem}.", COLUMNS, initial_indent=mark, subsequent_indent="  "):
        yield line.replace("\u00a0", " ")
    if sentence["remedy"]:
        yield from textwrap.wrap(
            _clean(sentence["remedy"]),
            COLUMNS,
            initial_indent="  → ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )


def _title(alias: str, pool: Mapping[str, Any]) -> str:
    # First: the end of a long line is cut off.
    facts = [pool.get("unusable"), pool["engine"], pool["server"]]
    return _clean(f"{alias}  {' · '.join(text for text in facts if text)}")


def _pool(
    stats: Mapping[str, Any], alias: str, pool: Mapping[str, Any], charts: Mapping[str, Any]
) -> Iterator[str]:
    cap, recent = total_cap(stats, alias), pool["recent"]
    yield _title(alias, pool)
    yield _bar(pool, cap, COLUMNS - 2)
    moving = f"{pool['connecting']} connecting, {pool['closing']} closing"
    host = stats["hosts"].get(alias) or {}
    others = host.get("taken_elsewhere") or 0  # which these workers cannot open now
    free = NONE if cap is None else count(max(0, cap - _open(pool) - others))
    yield (
        f"# {count(pool['in_use'])} in use  = {count(pool['idle'])} idle  ~ {moving}"
        f"  · {free} not opened, cap {'none' if cap is None else count(cap)}"
    )
    yield from _blocked(stats, alias)
    yield (
        f"waiting {count(pool['waiting'])}, longest {duration(pool['oldest_wait_seconds'])}"
        f"   oldest held {duration(pool['oldest_held_seconds'])}"
        f"   {rate(recent['acquired_per_second'])} acquired/s   {count(recent['timeouts'])} refused"
    )
    yield (
        f"waited {percent(recent['waited_share'])}"
        f"  wait {_mean(recent, 'wait')}  hold {_mean(recent, 'held')}"
    )
    for key, name in (("in_use", "in use"), ("waiting", "waiting")):
        values = charts.get(key) or []
        if any(values):
            highest = max(value for value in values if value is not None)
            top = max(highest, cap or 0) if key == "in_use" else highest
            yield f"{name:8} {_sparkline(values, top)} 5 min, ≤ {count(highest)}"
    yield from _peaks(pool)
    yield from _totals(pool)
    if host:
        yield (
            f"host     {count(host['taken'])} of {count(host['limit'])} taken, lent"
            f" {count(host['trades_total'])} times; workers that lack some: {count(host['hungry'])}"
        )
        if elsewhere := taken_elsewhere(host):
            yield f"         {elsewhere}"
    yield from _workers(stats, alias)


def _blocked(stats: Mapping[str, Any], alias: str) -> Iterator[str]:
    """That the numbers of a pool contain those which a blocked worker has noted before: what it
    holds at this moment is not known."""
    ages = {
        str(worker["slot"]): ago
        for worker in stats["workers"]
        if (ago := worker.get("seen_ago_seconds") or 0.0) >= BLOCKED_SECONDS
        and alias in worker["pools"]
    }
    if ages:
        are = "it is" if len(ages) == 1 else "they are"
        who = f"worker{'s' * (len(ages) > 1)} {listed([*ages])}"
        yield f"         {who} as of {duration(max(ages.values()))} ago: {are} blocked"


def _mean(recent: Mapping[str, Any], what: str) -> str:
    """The average, and what 95 % did not exceed."""
    p95 = recent.get(f"{what}_p95_at_most_seconds")
    mean = duration(recent.get(f"{what}_mean_seconds"))
    return f"mean {mean}" + (f", 95 % {at_most(p95)}" if p95 is not None else "")


def _open(pool: Mapping[str, Any]) -> int:
    return int(pool["in_use"] + pool["idle"] + pool["connecting"] + pool["closing"])


def _bar(pool: Mapping[str, Any], cap: float | None, columns: int) -> str:
    """Returns a bar in which each state has its sign; what exists is never invisible."""
    whole = max(cap or 0, _open(pool), 1)
    parts = (
        ("#", pool["in_use"]),
        ("=", pool["idle"]),
        ("~", pool["connecting"] + pool["closing"]),
    )
    drawn = "".join(sign * max(round(n * columns / whole), n > 0) for sign, n in parts)
    return f"[{drawn[:columns]:·<{columns}}]"


def _sparkline(values: Sequence[float | None], top: float) -> str:
    """Returns the highest value of each stretch as a column; a space where nothing is known."""
    size = -(-len(values) // _CHART)
    signs = []
    for start in range(0, len(values), size):
        known = [value for value in values[start : start + size] if value is not None]
        level = max(known) / top if known and top else 0.0
        signs.append(_BARS[min(len(_BARS) - 1, int(level * len(_BARS)))] if known else " ")
    return "".join(signs)


LEFT_OUT = "outages, hangs and failing connects"
"""What the peaks do not have, in the words of the page for browsers."""


def _peaks(pool: Mapping[str, Any]) -> Iterator[str]:
    def of(key: str, words: Callable[[float], str]) -> str:
        return " · ".join(words(peaks[key]) for peaks in pool["peaks"].values())

    windows = " · ".join(pool["peaks"])
    yield f"most     in use {of('in_use', count)}   waiting {of('waiting', count)}   in {windows}"
    yield f"         wait {of('wait_seconds', duration)}"
    yield f"         without {LEFT_OUT}"


def _totals(pool: Mapping[str, Any]) -> Iterator[str]:
    """What was counted since the start; what never was is left out."""
    told = []
    for name, key in TOTALS.items():
        number: Any = pool.get(key) or 0
        by_reason = number if isinstance(number, Mapping) else {}
        total = sum(by_reason.values()) if isinstance(number, Mapping) else number
        if not total and name != "acquired":
            continue
        parts = (_whole(f"{reason} {count(n)}") for reason, n in by_reason.items() if n)
        told.append(_whole(f"{name} {count(total)}") + f" ({', '.join(parts)})" * bool(by_reason))
    lines = textwrap.wrap(" · ".join(told), COLUMNS - 9)
    for label, line in zip(("in all", *[""] * len(lines)), lines, strict=False):
        yield f"{label:9}{line}".replace("\u00a0", " ")


def _whole(text: str) -> str:
    """A number and its name stay on one line."""
    return text.replace(" ", "\u00a0")


def _workers(stats: Mapping[str, Any], alias: str) -> Iterator[str]:
    rows = [(w, its) for w in stats["workers"] if (its := w["pools"].get(alias))]
    if len(rows) < 2:
        return
    for worker, its in rows[:WORKERS]:
        if (ago := worker.get("seen_ago_seconds") or 0.0) >= BLOCKED_SECONDS:
            # What it has noted of its pools is as old as that.
            yield (
                f"worker {worker['slot']!s:>3} {worker['pid']!s:>8} CPU {_cpu(worker):>7}"
                f" for {duration(ago)}, its numbers are not known meanwhile"
            )
            continue
        cap = its["max_outstanding"]
        used = f"{count(its['in_use'])} of {'∞' if cap is None else count(cap)}"
        yield (
            f"worker {worker['slot']!s:>3} {worker['pid']!s:>8} CPU {_cpu(worker):>6}"
            f" {_bar(its, cap, 9)} {used:>9}"
            f" {count(its['waiting']):>3} waiting, held {duration(its['oldest_held_seconds'])}"
        )
    if more := rows[WORKERS:]:
        used = count(sum(its["in_use"] for _, its in more))
        yield f"{plural(len(more), 'more worker')}: {used} in use"


def _cpu(worker: Mapping[str, Any]) -> str:
    """What the worker has used of a CPU, or that it is blocked."""
    if (worker.get("seen_ago_seconds") or 0.0) >= BLOCKED_SECONDS:
        return "blocked"
    return percent(worker.get("cpu_share"))


def _routes(stats: Mapping[str, Any]) -> Iterator[str]:
    routes = recent_routes(stats)[:ROUTES]
    if not routes:
        return
    yield ""
    head = f"{'held by, in the last 5 min':31}{'share':>6} {'leases':>9} {'each':>11}"
    yield f"{head} {'queries':>8} {'waits':>8}"
    for name, its, share in routes:
        text = _clean(name)
        shown = text if len(text) <= 30 else f"{text[:29]}…"
        each = duration(its["held_seconds"] / its["leases"])
        requests = its.get("requests")
        queries = rate((its.get("statements") or 0) / requests) if requests else NONE
        numbers = (
            f" {count(its['leases']):>9} {each:>11} {queries:>8} {count(its.get('waited')):>8}"
        )
        yield f"{shown:31}{percent(share):>6}{numbers}"
    if lost := lost_seconds(stats):
        yield f"(of this time, {duration(lost)} while statements hung, summed over connections)"


def _clean(text: str) -> str:
    """Returns names of projects without what a terminal might take for a command."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _cut(line: str) -> str:
    return line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…"
