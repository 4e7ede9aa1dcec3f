"""What the numbers of an instance should be, judged by its peaks: a pure function of
``/stats.json``.

A peak of connections in use is that of samples, one a second; whether anybody waited is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pooled_serve.status.remedies import (
    NO_ROOM,
    cap_of,
    cap_option,
    fitting_cap,
    shares,
    size_option,
    total_cap,
)
from pooled_serve.status.sentence import Sentence, lost_seconds, recent_routes
from pooled_serve.status.words import count, duration, percent, plural, span

WINDOW = "24h"
"""Of the peaks that count. A remedy from a shorter one would change while nothing happens."""

ENOUGH_SECONDS = 3600
"""Advice from less says so: a day has its quiet hours."""

LEAST_SECONDS = 20
"""From less, there is none."""

SAVING = 0.75
"""What is to be advised is worth it if it is below this share of what there is."""

FEW_WAITS = 0.01
"""Of requests: fewer that wait SHORT_SECONDS at most are what a pool is for."""
SHORT_SECONDS = 0.1


def advice(stats: Mapping[str, Any]) -> list[Sentence]:
    """Returns a sentence for each database that was used."""
    found = []
    for alias, pool in (stats.get("pools") or {}).items():
        peaks = (pool.get("peaks") or {}).get(WINDOW) or {}
        seconds = peaks.get("seconds") or 0
        if seconds < LEAST_SECONDS or not peaks.get("acquired"):
            continue
        busiest = recent_routes(stats)[:1]
        name, level, problem, remedy = _judge(stats, alias, pool, peaks, busiest)
        if not is_sure(pool):
            problem += f" (a hint only: it has been watched for {span(seconds)}, less than an hour)"
        found.append(Sentence(level, name, alias, problem, remedy))
    return found


def is_sure(pool: Mapping[str, Any]) -> bool:
    """Whether a database was watched for long enough; else advice on it is a hint, and for
    ``--advise`` only."""
    peaks = (pool.get("peaks") or {}).get(WINDOW) or {}
    return (peaks.get("seconds") or 0) >= ENOUGH_SECONDS


def no_advice(pool: Mapping[str, Any]) -> str:
    """Returns why there is none about a database."""
    peaks = (pool.get("peaks") or {}).get(WINDOW) or {}
    seconds = peaks.get("seconds") or 0
    if seconds < LEAST_SECONDS:
        return f"no advice yet: watched for {span(seconds)} of the {LEAST_SECONDS} s that it takes"
    return "no advice yet: no request has used it"


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
    most = peaks["in_use"]
    waits = peaks["waited"] + peaks["refused"]
    if not waits:
        text = f"{when} at most {count(most)}{of} connections{said} were in use, nobody waited"
        fits = fitting_cap(stats, alias, peaks)
        now = cap / shares(stats, alias) if cap else math.inf
        if fits <= SAVING * now or (fits < now and now - fits >= 2):
            option = cap_of(stats, alias, fits)
            return (
                "too large a pool",
                "note",
                f"Too large a pool: {_lower(text)}",
                _would_do(option),
            )
        return "it fits", "ok", text, "leave it as it is"
    share = waits / (peaks["acquired"] + peaks["refused"])
    times = "once" if peaks["occasions"] == 1 else f"on {count(peaks['occasions'])} occasions"
    longest = f"the longest {duration(peaks['wait_seconds'])}"
    if not peaks["refused"] and share < FEW_WAITS and peaks["wait_seconds"] <= SHORT_SECONDS:
        text = f"{when} {percent(share)} of requests{said} waited, {longest}"
        return "it fits", "ok", text, "leave it as it is"
    refused = f", {plural(peaks['refused'], 'request')} got none" if peaks["refused"] else ""
    where = f"at {count(most)}{of} connections"
    text = f"{when} waits{said} began {where} {times}, {percent(share)} waited, {longest}{refused}"
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
            remedy = f"--max-per-host {count(cap)} lets busy workers use what others do not"
        return "waits", "note", f"{text}{who}", remedy
    if 2 * peaks.get("waited_busy", 0) >= waits:
        remedy = (
            "-w, up to one for each CPU, or views that compute less; more connections do not help"
        )
        text = f"{_lower(text)}, most of this while a worker had used up its processor"
        return "busy processor", "note", f"Busy processor: {text}{who}", remedy
    option = cap_option(stats, alias, WINDOW)
    remedy = f"shorten what holds them, or {option}" if option else NO_ROOM
    return "too small a pool", "note", f"Too small a pool: {_lower(text)}{who}", remedy


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _would_do(option: str) -> str:
    return f"{option} would do"
