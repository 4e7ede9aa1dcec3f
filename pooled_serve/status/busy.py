"""Workers that cannot keep up: blocked, or without a processor to spare.

They explain a queue for connections, which are held for longer then; so they come before its other
causes, and more connections are no remedy. See load.py for the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pooled_serve.status.culprit import in_words
from pooled_serve.status.figures import RECENT_SECONDS
from pooled_serve.status.load import BLOCKED_SECONDS, BUSY_SHARE, is_busy
from pooled_serve.status.sentence import Sentence
from pooled_serve.status.words import count, duration, listed, percent, plural

MOST_NAMED = 4
"""Workers, with what blocks each."""

BAD_SECONDS = 5.0
"""A worker that is blocked for so long, and still is, is an emergency."""


def blocked_worker(stats: Mapping[str, Any], queue: str) -> Sentence | None:
    """Returns what there is to say of workers whose event loop lets no request run, or has not
    until a moment ago; None if all is well with them.

    :param queue: who waits meanwhile; empty if nobody does.
    """
    delays = {
        worker["slot"]: worker for worker in _workers(stats) if _delay(worker) >= BLOCKED_SECONDS
    }
    now = {slot: its for slot, its in delays.items() if its["seen_ago_seconds"] >= BLOCKED_SECONDS}
    # Where the URL configuration fails, each request imports it anew, and with DEBUG on the page of
    # the error takes seconds, too: that is said already. What still lasts may be something else.
    them = now or {slot: its for slot, its in delays.items() if not its.get("urls_failed")}
    if not them:
        return None
    longest = max(
        them.values(), key=lambda worker: worker["seen_ago_seconds"] if now else _delay(worker)
    )
    many = len(them) > 1
    if now:
        who = f"{_named(them)} {'have' if many else 'has'} let no other request run for"
        text = f"{who} {duration(longest['seen_ago_seconds'])}"
    else:
        text = (
            f"{_named(them)} let no other request run for {duration(_delay(longest))}, a moment ago"
        )
    where = _where(them)
    what, computes, waits = "a view", "computes", "waits"
    if where:
        what = "it"  # no view, perhaps
    if where and many:
        what, computes, waits = "they", "compute", "wait"
    if not now:
        computes, waits = "computed", "waited"
    dump = f"py-spy dump --pid {longest['pid']} shows where, while it lasts"
    remedy = (
        f"{what} {computes}, or {waits} without gevent (a library in C, a lock of another thread)"
    )
    if now:
        remedy += f": {dump}; move that elsewhere"
    elif all(its.get("blocked_in_log") for its in them.values()):
        remedy += ": the log has function, file and line; move that elsewhere"
    else:
        remedy += f": move that elsewhere; if it happens again, {dump}"
    bad = now and longest["seen_ago_seconds"] >= BAD_SECONDS
    name = "blocked workers" if many else "blocked worker"
    return _say("bad" if bad else "warn", name, text + where + f": {queue}" * bool(queue), remedy)


def without_descriptors(stats: Mapping[str, Any]) -> Sentence | None:
    """Returns what there is to say of workers that can open or accept no socket, or could not a
    moment ago; None if all can."""
    them = {
        worker["slot"]: worker
        for worker in _workers(stats)
        if (ago := worker.get("no_descriptor_ago_seconds")) is not None and ago < RECENT_SECONDS
    }
    if not them:
        return None
    many = len(them) > 1
    text = f"{_named(them)} {'have' if many else 'has'} no file descriptor left, or had none"
    text += f" in the last {RECENT_SECONDS} s: clients and connections to databases have to wait"
    pools = (stats.get("pools") or {}).values()
    if refused := sum((pool.get("recent") or {}).get("timeouts") or 0 for pool in pools):
        text += f", {plural(refused, 'request')} got 503"
    remedy = (
        "the log says whose limit it is: raise that of the process (ulimit -n, systemd's "
        "LimitNOFILE=) or of this host (fs.file-max), or find the leak"
    )
    return _say("bad", "no descriptors", text, remedy)


def broken_project(stats: Mapping[str, Any], ending: Collection[int]) -> Sentence | None:
    """Returns what there is to say of workers whose URL configuration failed when it was loaded;
    None if there is none. Django tries again with each request, and a worker notes when that works.

    :param ending: slots of workers that get no more requests.
    """
    workers = stats.get("workers") or ()
    them = [its for its in workers if its.get("urls_failed") and its["slot"] not in ending]
    if not them:
        return None
    error = them[0].get("urls_error") or ""
    text = (
        f"the URL configuration failed when {plural(len(them), 'worker')} loaded it (PS109"
        + f": {error}" * bool(error)
        + "), and requests get a 500 until it can be imported"
    )
    remedy = "the log has the error; correct it, and send HUP (with --preload it takes a restart)"
    return _say("bad", "broken project", text, remedy)


def busy_workers(stats: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns those that have used up their processor in the last seconds, the busiest first."""
    found = [worker for worker in _workers(stats) if is_busy(*_shares(worker))]
    return sorted(found, key=_load, reverse=True)


def most_processor_share(stats: Mapping[str, Any]) -> float:
    """Returns the most of a processor that a worker has used, or stood in line for, lately."""
    return max(map(_load, _workers(stats)), default=0.0)


def busy_processor(stats: Mapping[str, Any], queue: str) -> Sentence | None:
    """Returns what there is to say of them; None if there is none.

    :param queue: who waits meanwhile; empty if nobody does.
    """
    busy = busy_workers(stats)
    if not busy:
        return None
    text = f"{busy_in_words(busy)} in the last 10 s" + f": {queue}" * bool(queue)
    level = "warn" if queue else "note"
    return _say(level, "busy processor", text, processor_remedy(stats, busy))


def processor_remedy(stats: Mapping[str, Any], busy: list[Mapping[str, Any]]) -> str:
    """Returns what helps where workers cannot keep up.

    :param busy: those that cannot at this moment.
    """
    workers, cpus = len(stats.get("workers") or ()), stats.get("cpus") or 0
    others = [worker for worker in _workers(stats) if worker not in busy]
    if busy and _lacks_cpus(busy[0]):
        what = f"this host has too few CPUs ({cpus}) for what runs on it: more, or another host"
    elif busy and 2 * len(others) > workers:
        what = "other workers have CPU to spare: see what this one does for so long, or wait"
    elif workers < cpus:
        what = f"-w {cpus}, one for each CPU"
    else:
        what = "more hosts or CPUs"
    return f"{what}; or views that compute less; more connections do not help"


def busy_in_words(busy: list[Mapping[str, Any]]) -> str:
    """Returns what the busiest worker has used: "worker 1 used 98 % of a CPU"."""
    first = busy[0]
    text = f"worker {first['slot']} used {percent(min(1.0, first['cpu_share']))} of a CPU"
    if _lacks_cpus(first):
        text += f" and stood in line for one for {percent(first['cpu_wait_share'])} of the time"
    if len(busy) > 1:
        others = len(busy) - 1
        text += f", and {count(others)} other{'s' if others > 1 else ''} nearly as much"
    return text


def _lacks_cpus(worker: Mapping[str, Any]) -> bool:
    return bool((worker.get("cpu_wait_share") or 0.0) > 1.0 - BUSY_SHARE)


def _workers(stats: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns those that are measured."""
    found = stats.get("workers") or ()
    return [worker for worker in found if worker.get("seen_ago_seconds") is not None]


def _load(worker: Mapping[str, Any]) -> float:
    return sum(_shares(worker))


def _shares(worker: Mapping[str, Any]) -> tuple[float, float]:
    return worker.get("cpu_share") or 0.0, worker.get("cpu_wait_share") or 0.0


def _delay(worker: Mapping[str, Any]) -> float:
    return float(worker.get("loop_delay_seconds") or 0.0)


def _where(workers: Mapping[Any, Mapping[str, Any]]) -> str:
    """Returns in which views they are, or were, blocked; empty if that is not known of all."""
    names = {slot: its.get("blocked_in") or "" for slot, its in workers.items()}
    if len({*names.values()}) == 1:
        return in_words(next(iter(names.values())))
    if not all(names.values()):
        return ""
    each = [f"worker {slot}{in_words(name)[1:]}" for slot, name in names.items()]
    return f", {', '.join(each[:MOST_NAMED])}" + ", ..." * (len(each) > MOST_NAMED)


def _named(workers: Mapping[Any, Any]) -> str:
    if len(workers) == 1:
        return f"worker {next(iter(workers))}"
    return f"workers {listed([str(slot) for slot in workers])}"


def _say(level: str, name: str, problem: str, remedy: str) -> Sentence:
    return Sentence(level, name, "", f"{name[0].upper()}{name[1:]}: {problem}", remedy)
