"""What is wrong now, in sentences: each has a name, numbers, and a remedy.

A pure function of ``/stats.json``, whose numbers the page shows beside the sentences. One incident
has many symptoms, and the same queue has many causes: of the causes of a queue the one that comes
first in :func:`_queue` is named, because it would explain the others. What busy.py finds comes
before them, and what disruptions.py finds explains all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pooled_serve.status.busy import blocked_worker, busy_in_words, busy_processor, busy_workers
from pooled_serve.status.disruptions import PoolInWords
from pooled_serve.status.remedies import cap_remedy, size_option, total_cap
from pooled_serve.status.sentence import LEVELS, Sentence, recent_routes
from pooled_serve.status.words import count, duration, listed, percent, plural

LEAK_SECONDS = 30.0
"""A connection held for longer, for LEAK_TIMES as long as 95 % of the others, and for twice as long
as any that has come back, was forgotten."""
LEAK_TIMES = 20.0

SLOW_SECONDS = 0.5
"""What a lease takes on average in a slow view..."""
SLOW_SHARE = 0.5
"""... that has held connections for this share of all connection time."""

MANY_STATEMENTS = 50.0
"""Statements of a request on average, of which a loop over single rows is suspected."""
MANY_SHARE = 0.3
"""... in a view with this share of all connection time."""

PINNED_SHARE = 0.2
"""Of all leases of transaction mode; each is as long as its request."""

ASKING_SHARE = 0.5
"""Of the connections in use: if fewer wait for an answer of the server, views do other things."""

STORM_OPENED = 10
"""Connections opened, and as good as closed, in the last seconds..."""
STORM_SHARE = 0.2
"""... and this share of all hand-outs met a new one."""

SHORT_WAIT_SECONDS = 0.05
"""A queue that 95 % of requests pass in less is what a pool is for..."""
MANY_WAIT = 0.3
"""... unless this share of them has to."""


def findings(stats: Mapping[str, Any]) -> list[Sentence]:
    """Returns what there is to say of an instance, the worst first; never nothing.

    :param stats: as of ``/stats.json``. What an older server leaves out is not judged.
    """
    found = []
    pools: Mapping[str, Any] = stats.get("pools") or {}
    if not stats.get("workers"):
        remedy = "the log says why workers end"
        found.append(Sentence("bad", "no worker", "", "No worker is running", remedy))
    elif stats.get("stopping"):
        found.append(_stopping(pools))
    judged = [_Pool(stats, alias, pool) for alias, pool in pools.items()]
    explained = _why_workers_are_slow(stats, judged)
    found += [explained] if explained else []
    for pool in judged:
        found += pool.judge(explained=explained is not None)
    found = [sentence for level in LEVELS for sentence in found if sentence.level == level]
    return found or [_all_is_well(stats)]


def _stopping(pools: Mapping[str, Any]) -> Sentence:
    in_use = sum(pool.get("in_use") or 0 for pool in pools.values())
    verb = "is" if in_use == 1 else "are"
    text = f"Stopping: {plural(in_use, 'connection')} {verb} still in use"
    remedy = (
        "--graceful-timeout bounds how long that takes, or twice that if a reload was under way"
    )
    return Sentence("note", "stopping", "", text, remedy)


def _why_workers_are_slow(stats: Mapping[str, Any], pools: Sequence[_Pool]) -> Sentence | None:
    """Returns what is said of workers that cannot keep up, and of the queues that they make; None
    if they can, or if that is the consequence of something else."""
    pressed = [pool for pool in pools if pool.pressed]
    queue = ", ".join(pool.queue_in_words() for pool in pressed)
    bad = any(pool.level == "bad" for pool in pressed)
    if blocked := blocked_worker(stats, queue):
        return replace(blocked, level="bad") if bad else blocked
    # To refuse costs time, too: clients who are refused at once may come back at once.
    refusing = any(pool.lately("timeouts") > pool.lately("acquired") for pool in pools)
    if refusing or any(pool.disruption() is not None for pool in pools):
        return None
    busy = busy_processor(stats, queue)
    return replace(busy, level="bad") if busy and bad else busy


class _Pool(PoolInWords):
    """One database, and what is the matter with it."""

    def judge(self, *, explained: bool) -> Iterator[Sentence]:
        """Returns what there is to say.

        :param explained: whether workers that cannot keep up explain a queue.
        """
        if (disruption := self.disruption()) is not None:
            yield disruption  # it explains refusals and waits, too
            return
        if errors := self.lately("connect_errors"):
            yield self.say(
                "warn",
                "failing connects",
                f"connecting to {self.alias} failed {_times(errors)} {self.window}",
                "the log has the server's error: often its limit of connections, or an account",
            )
        queue = None
        if self.pressed:
            hanging = self.hanging_statements(self.queue_in_words())
            queue = hanging if hanging or explained else next(self._queue(), None)
        if queue is not None:
            yield queue
        storm = self._storm()
        if queue is not None and self._usual_reason() in ("lent", "surplus"):
            storm = None  # one load, one sentence
        for other in (self._leak(), storm, self._many_statements(), self._pinned()):
            if other is not None and (queue is None or other.name != queue.name):
                yield other

    # --- A queue, and why ----------------------------------------------------------------------

    @property
    def pressed(self) -> bool:
        """Whether requests wait for longer than a moment, or were refused."""
        if self.lately("timeouts"):
            return True
        if self.number("waiting") and self.number("oldest_wait_seconds") >= SHORT_WAIT_SECONDS:
            return True
        if self.lately("waited_share") >= MANY_WAIT:
            return True
        return self.lately("waited") > 0 and self.wait_p95 >= SHORT_WAIT_SECONDS

    @property
    def wait_p95(self) -> float:
        return self.lately("wait_p95_seconds")

    @property
    def level(self) -> str:
        return "bad" if self.lately("timeouts") else "warn"

    def queue_in_words(self) -> str:
        """Who waits, for how long, and who was refused; all that the numbers beside it show."""
        words = []
        if waiting := self.number("waiting"):
            verb = "waits" if waiting == 1 else "wait"
            longest = duration(self.pool.get("oldest_wait_seconds"))
            words.append(f"{plural(waiting, 'request')}{self.of} {verb}, the longest {longest}")
        elif waited := self.lately("waited"):
            share = percent(self.recent.get("waited_share"))
            words.append(f"{share} of requests{self.of} waited {self.window}")
            if waited:
                words.append(f"95 % less than {duration(self.wait_p95)}")
        if refused := self.refused_in_words():
            words.append(refused)
        return ", ".join(words)

    def _queue(self) -> Iterator[Sentence]:
        """Returns the causes of a queue, the first of which counts."""
        queue = self.queue_in_words()
        if leak := self._leak(queue):
            yield leak
        if busy := self._busy_worker(queue):
            yield busy
        if pinned := self._pinned(queue):
            yield pinned
        if waiting := self._waiting_views(queue):
            yield waiting
        if many := self._many_statements(queue):
            yield many
        if slow := self._slow_view(queue):
            yield slow
        cap = total_cap(self.stats, self.alias)
        host = (self.stats.get("hosts") or {}).get(self.alias)
        if host and host.get("taken", 0) >= host.get("limit", 0):
            taken = f"all {count(host['limit'])} connections of this host are taken"
            name = "overload" if self.lately("timeouts") else "too small a pool"
            remedy = cap_remedy(self.stats, self.alias)
            yield self.say(self.level, name, f"{taken}: {queue}", remedy)
        opening = self.number("connecting") or self.lately("opened")
        if cap is None or (opening and self.most_in_use() < cap and not self.lately("timeouts")):
            if storm := self._storm(queue):
                yield storm
            yield self.say(
                self.level,
                "slow connects",
                f"{queue}, while {plural(opening, 'connection')} had to be opened",
                self._keep_more(),
            )
        full = self.at_cap()
        faster = self.routes_in_words()
        if self.lately("timeouts"):
            remedy = cap_remedy(self.stats, self.alias, "more workers or hosts, shorter requests")
            if workers := busy_workers(self.stats):
                remedy = (
                    "more workers, up to one for each CPU, or hosts, or views that compute less; "
                    f"more connections do not help while {busy_in_words(workers)}"
                )
            yield self.say(
                "bad",
                "overload",
                f"requests arrive faster than connections come back, {full}: {queue}{faster}",
                remedy,
            )
        yield self.say(
            self.level,
            "too small a pool",
            f"{full}: {queue}{faster}",
            cap_remedy(self.stats, self.alias),
        )

    def _keep_more(self) -> str:
        if option := size_option(self.stats, self.alias):
            return f"keep more of them open: {option}"
        return f"all that may be are kept open: {cap_remedy(self.stats, self.alias)}"

    def most_in_use(self) -> float:
        """Of this moment and the last minutes: at the cap there are moments with one less."""
        peaks = (self.pool.get("peaks") or {}).get("5m") or {}
        return max(self.number("in_use"), peaks.get("in_use") or 0)

    def at_cap(self) -> str:
        """How much of what there may be is used."""
        cap, most = total_cap(self.stats, self.alias) or 0, self.most_in_use()
        verb = "are" if self.number("in_use") >= most else "were"
        if most >= cap:
            return f"all {count(cap)} connections{self.of} {verb} in use"
        return f"up to {count(most)} of {count(cap)} connections{self.of} {verb} in use"

    def full_workers(self) -> list[Any]:
        return [
            slot
            for slot, its in self.workers
            if its.get("max_outstanding") and its.get("in_use", 0) >= its["max_outstanding"]
        ]

    def _busy_worker(self, queue: str) -> Sentence | None:
        """Some workers have a queue, and others at least half of their connections free."""
        full = self.full_workers()
        busy = [slot for slot, its in self.workers if its.get("waiting") and slot in full]
        others = [its for slot, its in self.workers if slot not in busy]
        each = max((its.get("max_outstanding") or 0 for _, its in self.workers), default=0)
        caps = each * len(others)  # one that was not asked yet has no pool
        used = sum(its.get("in_use", 0) for its in others)
        if not busy or not caps or used > caps / 2 or (self.stats.get("hosts") or {}):
            return None
        who = f"worker {busy[0]} is" if len(busy) == 1 else f"workers {listed(_texts(busy))} are"
        rest = "the other worker has" if len(others) == 1 else f"{len(others)} others have"
        limit = count(each * len(self.workers))
        return self.say(
            self.level,
            "one busy worker" if len(busy) == 1 else "busy workers",
            f"{who} at the cap, while {rest} {count(caps - used)} of {count(caps)} free: {queue}",
            f"--max-per-host {limit} lets workers lend each other connections",
        )

    def _leak(self, queue: str = "") -> Sentence | None:
        held = self.number("oldest_held_seconds")
        usual = self.lately("held_p95_seconds")
        longest = (
            route.get("longest_held_seconds") or 0 for route in self.stats.get("routes") or ()
        )
        if held < LEAK_SECONDS or held < LEAK_TIMES * usual or held < 2 * max(longest, default=0.0):
            return None
        if self.number("in_statement") >= self.number("in_use"):
            return None  # none was forgotten: the server is at work for each
        other = f", the others {duration(usual)} at most (95 %)" if usual else ""
        text = f"a connection{self.of} has been in use for {duration(held)}{other}"
        remedy = (
            f"--leak-threshold {LEAK_SECONDS / 2:.0f} logs the request and the line that took it"
        )
        level = self.level if queue else "warn"
        return self.say(level, "leak", text + (f"; {queue}" if queue else ""), remedy)

    def _pinned(self, queue: str = "") -> Sentence | None:
        pinned: Mapping[str, int] = self.recent.get("pinned") or {}
        total, acquired = sum(pinned.values()), self.lately("acquired")
        if total < 2 or total < PINNED_SHARE * acquired:
            return None
        reason = max(pinned, key=lambda key: pinned[key])
        share = percent(min(1.0, total / acquired)) if acquired else "all"
        text = (
            f"{share} of leases{self.of} are kept to the end of the request, "
            f"{_times(pinned[reason])} because of {_PINS.get(reason, f'“{reason}”')} {self.window}"
        )
        remedy = "do that in an atomic() block or on an alias of its own, or not at all"
        level = self.level if queue else "note"
        return self.say(level, "pinned leases", text + (f": {queue}" if queue else ""), remedy)

    def _waiting_views(self, queue: str) -> Sentence | None:
        """All connections are held, and most of them for nothing."""
        asking = self.recent.get("asking_share")
        cap = total_cap(self.stats, self.alias)
        mode = self.stats.get("pool_mode")
        if asking is None or asking >= ASKING_SHARE or not mode or not cap:
            return None
        if self.most_in_use() < cap and not self.full_workers():
            return None
        text = f"{percent(1.0 - asking)} of the connections in use{self.of} run no statement"
        text += f" {self.window}, their views wait for something else: {queue}"
        remedy = "--pool-mode transaction: a view that asks another service holds none meanwhile"
        if mode == "transaction":
            remedy = (
                "no atomic() around calls to another service; where ATOMIC_REQUESTS is on: "
                "@transaction.non_atomic_requests on these views"
            )
        text += self.routes_in_words()
        return self.say(self.level, "waiting views", text, remedy)

    def _many_statements(self, queue: str = "") -> Sentence | None:
        # Without a queue it is no cause of anything, and that of a longer time is surer.
        for route, its, share in self.routes() if queue else recent_routes(self.stats):
            requests = its.get("requests") or 0
            each = (its.get("statements") or 0) / requests if requests else 0.0
            if each >= MANY_STATEMENTS and (share or 0) >= MANY_SHARE:
                text = f"{route} runs {count(each)} statements for each request"
                text += f" and holds {percent(share)} of the connection time"
                level = self.level if queue else "note"
                remedy = "select_related() or prefetch_related() there instead of a query per row"
                return self.say(level, "N+1 queries", text + (f": {queue}" * bool(queue)), remedy)
        return None

    def _slow_view(self, queue: str) -> Sentence | None:
        for route, its, share in self.routes():
            each = its["held_seconds"] / its["leases"]
            if each < SLOW_SECONDS or (share or 0) < SLOW_SHARE:
                return None
            text = f"{route} holds {percent(share)} of the connection time, {duration(each)} each"
            # In transaction mode only atomic() keeps a connection for so long.
            remedy = (
                "make its statements faster; if it waits for another service: --pool-mode "
                "transaction, and no atomic() around that"
            )
            return self.say(self.level, "slow view", f"{text}: {queue}", remedy)
        return None

    # --- Routes --------------------------------------------------------------------------------

    def routes(self) -> list[tuple[str, Mapping[str, Any], float | None]]:
        """Returns name, numbers and share of the connection time of routes, the busiest first, of
        the seconds that the sentences speak of: what was before is no cause of a queue."""
        return recent_routes(self.stats, "lately")

    def routes_in_words(self) -> str:
        busiest = self.routes()[:1]
        if not busiest or not busiest[0][2]:
            return ""
        route, its, share = busiest[0]
        each = duration(its["held_seconds"] / its["leases"])
        return f"; {route} holds most, {percent(share)} of the time, {each} each"

    # --- Others --------------------------------------------------------------------------------

    def _usual_reason(self) -> str:
        """Returns why most of the connections were closed that were; empty if none was."""
        closed: Mapping[str, int] = self.recent.get("closed") or {}
        return max(closed, key=lambda key: closed[key], default="")

    def _storm(self, queue: str = "") -> Sentence | None:
        """New connections all the time. Those of a start are not closed so soon."""
        opened, acquired = self.lately("opened"), self.lately("acquired")
        closed: Mapping[str, int] = self.recent.get("closed") or {}
        if min(opened, sum(closed.values())) < STORM_OPENED or opened < STORM_SHARE * acquired:
            return None
        reason = self._usual_reason()
        text = (
            f"{count(opened)} connections{self.of} were opened {self.window} for"
            f" {plural(acquired, 'hand-out')}; {count(closed[reason])} were closed as “{reason}”"
        )
        remedy = _STORMS.get(reason, "the README's table of reasons says what closes them")
        if reason == "lent":
            remedy = f"workers take them from each other: {cap_remedy(self.stats, self.alias)}"
        if reason == "surplus":
            remedy = self._keep_more()
        level = self.level if queue else "warn"
        return self.say(level, "connect storm", text + f": {queue}" * bool(queue), remedy)


_STORMS = {
    "age": "a longer --conn-max-age, below the server's wait_timeout",
    "dead": "--conn-max-age below the time after which the server or a proxy closes idle ones",
    "lost": "see the server's log for why it ends connections",
    "moved": "the server has become read-only: connections go to where its name leads now",
    "dirty": "see that views end their transactions, or leave --pool-reset at auto",
    "unread": "read results to the end, or do not use unbuffered cursors",
    "lasting state": "leave out the statement that a reset cannot undo, see the README",
    "direct use": "use Django's cursors rather than connection.connection",
    "reset failed": "the log has the server's error; --pool-reset rollback does without resets",
    "killed": "see what ends requests in the middle of a statement: timeouts, clients that hang up",
    "abandoned": "see what ends greenlets that hold a connection",
    "drain": "a worker stops: nothing to do, unless it happens all the time",
}

_PINS = {
    "variable": "SET or a user variable",
    "lock": "GET_LOCK()",
    "table lock": "LOCK TABLES",
    "temporary table": "a temporary table",
    "unbuffered cursor": "an unbuffered cursor",
    "procedure": "a stored procedure",
    "prepared statement": "PREPARE",
}


def _times(number: float) -> str:
    return "once" if number == 1 else f"{count(number)} times"


def _texts(values: list[Any]) -> list[str]:
    return [str(value) for value in values]


def _all_is_well(stats: Mapping[str, Any]) -> Sentence:
    pools = list((stats.get("pools") or {}).items())
    if not pools:
        return Sentence(
            "ok", "all is well", "", "All is well: no request has needed a database yet"
        )
    caps = [total_cap(stats, alias) for alias, _ in pools]
    of = f" of {count(sum(cap for cap in caps if cap))}" if all(caps) else ""
    in_use = count(sum(pool.get("in_use") or 0 for _, pool in pools))
    text = f"All is well: {in_use}{of} connections in use, {_waits_in_words(pools)}"
    return Sentence("ok", "all is well", "", text)


def _waits_in_words(pools: list[tuple[str, Any]]) -> str:
    recents = [pool.get("recent") or {} for _, pool in pools]
    waited = sum(recent.get("waited") or 0 for recent in recents)
    waiting = sum(pool.get("waiting") or 0 for _, pool in pools)
    if not waited and not waiting:
        return "nobody waits"
    longest = max(recent.get("wait_p95_seconds") or 0.0 for recent in recents)
    waited += waiting  # as in waited_share
    share = waited / (sum(recent.get("acquired") or 0 for recent in recents) + waiting or 1)
    short = f"{percent(min(1.0, share))} of requests waited a moment"
    return f"{short}, 95 % of all less than {duration(longest)}" if longest else short
