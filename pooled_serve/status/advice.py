"""What the numbers of an instance should be, judged by its peaks: a pure function of
``/stats.json``.

A peak of connections in use is at least what there was at any moment at which one was opened or a
sample taken; whether anybody waited is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pooled_serve.driver.error_codes import FULL
from pooled_serve.status.busy import busy_workers, processor_remedy
from pooled_serve.status.remedies import (
    cap_of,
    cap_option,
    fitting_cap,
    no_room,
    pool_size,
    shares,
    size_option,
    total_cap,
)
from pooled_serve.status.sentence import Sentence, lost_seconds, recent_routes
from pooled_serve.status.views import ViewsInWords
from pooled_serve.status.words import count, duration, percent, plural, span

WINDOW = "24h"
"""Of the peaks that count. A remedy from a shorter one would change while nothing happens."""

ENOUGH_SECONDS = 3600
"""Advice from less says so: a day has its quiet hours."""

LEAST_SECONDS = 20
"""From less, there is none."""

CALM_SECONDS = 180
"""After an outage there is none for so long: what comes back at once is no everyday load."""

SAVING = 0.75
"""What is to be advised is worth it if it is below this share of what there is."""

FEW_WAITS = 0.01
"""Of requests: fewer that wait SHORT_SECONDS at most are what a pool is for."""
SHORT_SECONDS = 0.1

SURPLUS_AN_HOUR = 10
"""Connections closed as surplus, or as many if it was watched for less: fewer cost nothing..."""
SURPLUS_SHARE = 0.5
"""... and this share of those that were opened."""

OF_VIEWS = {"waiting views", "slow view", "N+1 queries", "pinned leases", "leak"}
"""Findings of what views do with the connections that they hold. Without that, a queue may need no
larger cap."""


def advice(stats: Mapping[str, Any], found: Iterable[Sentence] = ()) -> list[Sentence]:
    """Returns a sentence for each database that was used, and another if many of its connections
    were closed as surplus.

    :param found: what there is to say of this moment, which is shown above.
    """
    of_views = {each.pool: each.name for each in found if each.name in OF_VIEWS}
    advised = []
    for alias, pool in (stats.get("pools") or {}).items():
        peaks = (pool.get("peaks") or {}).get(WINDOW) or {}
        seconds = peaks.get("seconds") or 0
        if seconds < LEAST_SECONDS or not peaks.get("acquired") or _trouble(stats, alias):
            continue
        busiest = recent_routes(stats)[:1]
        name, level, problem, remedy = _judge(stats, alias, pool, peaks, busiest)
        if not is_sure(pool):
            problem += f" (a hint only: it has been watched for {span(seconds)}, less than an hour)"
        if name == "too small a pool" and alias in of_views:
            remedy = f"first what is said of the {of_views[alias]}, and see again then"
            slow = of_views[alias] == "slow view"  # a leak soon has all of a larger cap, too
            if slow and (stopgap := _stopgap(stats, alias, pool)):
                remedy += f"; until then {stopgap}"
        advised.append(Sentence(level, name, alias, problem, remedy))
        busy = name == "busy processor" or busy_workers(stats)  # more do not help it
        if not busy and alias not in of_views:
            advised += _surplus(stats, alias, pool, besides=remedy)
    return advised


def _surplus(
    stats: Mapping[str, Any], alias: str, pool: Mapping[str, Any], besides: str
) -> list[Sentence]:
    """Returns what there is to say of connections that were opened only to be closed again: one
    sentence or none.

    :param besides: a remedy that is given already.
    """
    peaks = pool["peaks"][WINDOW]
    opened, surplus = peaks.get("opened") or 0, peaks.get("surplus") or 0
    hours = max(1.0, peaks["seconds"] / 3600)
    if surplus < SURPLUS_AN_HOUR * hours or surplus < SURPLUS_SHARE * opened:
        return []
    option = size_option(stats, alias, WINDOW)
    if not option or option in besides:
        return []
    said = f" for {alias}" if len(stats["pools"]) > 1 else ""
    problem = (
        f"Small pool size: in {span(peaks['seconds'])} {count(opened)} connections{said} were "
        f"opened and {count(surplus)} closed as “surplus”, as a worker keeps "
        f"{count(pool_size(stats, alias))} idle at most"
    )
    remedy = f"{option} keeps as many open as were in use"
    return [Sentence("note", "small pool size", alias, problem, remedy)]


def _stopgap(stats: Mapping[str, Any], alias: str, pool: Mapping[str, Any]) -> str:
    """Returns what lets requests wait less meanwhile; empty if nothing does."""
    of_pool = ViewsInWords(stats, alias, pool)
    text = of_pool.stopgap(WINDOW)
    return f"{text}, unless a lock is behind it" if text and of_pool.all_ask else text


def is_sure(pool: Mapping[str, Any]) -> bool:
    """Whether a database was watched for long enough; else advice on it is a hint, and for
    ``--advise`` only."""
    peaks = (pool.get("peaks") or {}).get(WINDOW) or {}
    return (peaks.get("seconds") or 0) >= ENOUGH_SECONDS


def no_advice(stats: Mapping[str, Any], alias: str) -> str:
    """Returns why there is none about a database."""
    pool = stats["pools"][alias]
    if trouble := _trouble(stats, alias):
        return f"no advice now: {trouble}"
    peaks = (pool.get("peaks") or {}).get(WINDOW) or {}
    seconds = peaks.get("seconds") or 0
    if seconds < LEAST_SECONDS:
        return f"no advice yet: watched for {span(seconds)} of the {LEAST_SECONDS} s that it takes"
    return "no advice yet: no request has used it"


def _trouble(stats: Mapping[str, Any], alias: str) -> str:
    """Returns what makes the numbers of this moment say nothing about a pool's size; else ""."""
    pool = stats["pools"][alias]
    recent, last = pool.get("recent") or {}, pool.get("last_outage_seconds")
    if pool.get("reachable") is False or pool.get("stuck"):
        # Who has a connection of a full server can use it.
        full = not pool.get("stuck") and pool.get("connect_error") in FULL
        return "the server is full" if full else "the database cannot be used"
    if recent.get("connect_errors"):
        return "attempts to connect fail"
    if ViewsInWords(stats, alias, pool).suffers_from_hang():
        return "statements hang"
    if (hung := recent.get("hung_ago_seconds")) is not None:
        return f"statements have hung until {span(hung)} ago"
    if last is not None and last < CALM_SECONDS:
        left = CALM_SECONDS - last
        again = span(60 * math.ceil(left / 60) if left > 60 else math.ceil(left))
        return f"the last trouble with the database ended {span(last)} ago, see again in {again}"
    return ""


def _judge(
    stats: Mapping[str, Any],
    alias: str,
    pool: Mapping[str, Any],
    peaks: Mapping[str, Any],
    busiest: list[tuple[str, Mapping[str, Any], float | None]],
) -> tuple[str, str, str, str]:
    """Returns name, level, problem and remedy."""
    cap = total_cap(stats, alias)
    of = f" of {count(cap)}" if cap else ""
    said = f" for {alias}" if len(stats["pools"]) > 1 else ""
    when = f"In {span(peaks['seconds'])}"
    if pool.get("outages_total"):
        when += " without outages"
    most = peaks["in_use"]
    waits = peaks["waited"] + peaks["refused"]
    if not waits:
        text = f"{when} at most {count(most)}{of} connections{said} were in use, nobody waited"
        fits = fitting_cap(stats, alias, WINDOW)
        now = cap / shares(stats, alias) if cap else math.inf
        if fits <= SAVING * now or (fits < now and now - fits >= 2):
            option = cap_of(stats, alias, int(fits))
            return (
                "too large a pool",
                "note",
                f"Too large a pool: {_lower(text)}",
                _would_do(option),
            )
        return "it fits", "ok", text, "leave it as it is"
    share = waits / (peaks["acquired"] + peaks["refused"])
    times = f" on {count(peaks['occasions'])} occasions" if peaks["occasions"] > 1 else ""
    longest = f"the longest {duration(peaks['wait_seconds'])}"
    if not peaks["refused"] and share < FEW_WAITS and peaks["wait_seconds"] <= SHORT_SECONDS:
        text = f"{when} {percent(share)} of requests{said} waited, {longest}"
        return "it fits", "ok", text, "leave it as it is"
    refused = f", {plural(peaks['refused'], 'request')} got none" if peaks["refused"] else ""
    where = f"at {count(most)}{of} connections"
    text = f"{when} waits{said} began {where}{times}, {percent(share)} waited, {longest}{refused}"
    who = ""
    if busiest and busiest[0][2] and busiest[0][1]["held_seconds"] >= 2 * lost_seconds(stats):
        route, its, part = busiest[0]
        each = duration(its["held_seconds"] / its["leases"])
        who = f"; of late {route} held {percent(part)} of the connection time, {each} each"
    if cap and most < SAVING * cap:
        # Not the cap: connections had to be opened, or one worker had all the work.
        option = size_option(stats, alias, WINDOW) or "a longer --conn-max-age"
        remedy = f"{option} keeps as many open as are needed"
        if peaks["in_use_worker"] >= cap / shares(stats, alias):
            remedy = f"--max-per-host {cap:.0f} lets busy workers use what others do not"
        return "waits", "note", f"{text}{who}", remedy
    if 2 * peaks.get("waited_busy", 0) >= waits:
        remedy = processor_remedy(stats, busy_workers(stats))
        text = f"{_lower(text)}, most of this while a worker had used up its processor"
        return "busy processor", "note", f"Busy processor: {text}{who}", remedy
    option = cap_option(stats, alias, WINDOW)
    remedy = f"shorten what holds them, or {option}" if option else no_room(pool)
    return "too small a pool", "note", f"Too small a pool: {_lower(text)}{who}", remedy


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _would_do(option: str) -> str:
    return f"{option} would do"
