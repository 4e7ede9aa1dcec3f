"""What is wrong now, in sentences: each has a name, numbers, and a remedy.

A pure function of ``/stats.json``, whose numbers the page shows beside the sentences. One incident
has many symptoms, and the same queue has many causes: of the causes of a queue the one that comes
first in :func:`_queue` is named, because it would explain the others. What busy.py finds comes
before them, and what disruptions.py finds explains all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pooled_serve.options import MAX_PER_HOST
from pooled_serve.status.busy import (
    blocked_worker,
    broken_project,
    busy_in_words,
    busy_processor,
    busy_workers,
    processor_remedy,
    without_descriptors,
)
from pooled_serve.status.figures import BETWEEN_SECONDS, RECENT_SECONDS
from pooled_serve.status.remedies import cap_option, cap_remedy, size_option, total_cap
from pooled_serve.status.sentence import LEVELS, Sentence
from pooled_serve.status.views import ViewsInWords
from pooled_serve.status.words import (
    at_most,
    count,
    duration,
    listed,
    percent,
    plural,
    span,
    taken_elsewhere,
)

DEATH_SECONDS = 60.0
"""For so long the page tells of a worker that has died, also when its successor serves."""

LEAK_SECONDS = 30.0
"""A connection held for longer, for LEAK_TIMES as long as 95 % of the others, and for twice as long
as any that has come back, was forgotten."""
LEAK_TIMES = 20.0

STORM_OPENED = 10
"""Connections opened, and as good as closed, in the last seconds..."""
STORM_SHARE = 0.2
"""... and this share of all hand-outs met a new one."""

OF_SETTINGS = ("PS102", "PS110", "PS112", "PS113")
"""Problems that workers find after a reload; the master finds others, and keeps the old options."""

START_SECONDS = RECENT_SECONDS + BETWEEN_SECONDS
"""After a start, what it does by its nature is in the numbers for so long..."""
LONG_WAIT_SECONDS = 2.0
"""... and that a request waits for so long, or is refused, is not among it."""


def findings(
    stats: Mapping[str, Any], ending: Collection[int] = (), dying: Collection[int] = ()
) -> list[Sentence]:
    """Returns what there is to say of an instance, the worst first; never nothing.

    :param stats: as of ``/stats.json``. What an older server leaves out is not judged.
    :param ending: slots of workers that are about to stop.
    :param dying: those of them that nobody has told to; the others finish what they have begun.
    """
    found = []
    pools: Mapping[str, Any] = stats.get("pools") or {}
    told = {*ending} - {*dying}
    if not stats.get("workers"):
        remedy = "the log says why workers end"
        found.append(Sentence("bad", "no worker", "", "No worker is running", remedy))
    elif stats.get("stopping") and (told or not dying):
        found.append(_stopping(pools))
    elif told and 2 * len(told) >= len(stats["workers"]):  # --max-requests ends one by one
        found.append(_ending(len(told), len(stats["workers"]) - len({*ending, *dying})))
    if dying:
        found.append(_dying(sorted(dying)))
    if refused := _not_reloaded(stats):
        found.append(refused)
    if broken := broken_project(stats, ending):
        found.append(broken)
    if short := without_descriptors(stats):
        found.append(short)
    judged = [_Pool(stats, alias, pool) for alias, pool in pools.items()]
    explained = _why_workers_are_slow(stats, judged)
    found += [explained] if explained else []
    for pool in judged:
        found += pool.judge(explained=explained is not None, short=short is not None)
    if died := _worker_died(stats):
        found.append(died)
    found = [sentence for level in LEVELS for sentence in found if sentence.level == level]
    return found or [_all_is_well(stats)]


def _dying(slots: Sequence[int]) -> Sentence:
    """Said until the master has found them dead. What they do then is not the end of a reload."""
    one = len(slots) == 1
    text = f"{'Worker dies: worker' if one else 'Workers die: workers'} "
    text += f"{listed([str(slot) for slot in slots])} {'ends' if one else 'end'} without being told"
    text += f" to, after --timeout or an error; {'its' if one else 'their'} requests may be lost"
    remedy = "the log has the error; after WORKER TIMEOUT see what blocked it"
    return Sentence("warn", "worker dies", "", text, remedy)


def _worker_died(stats: Mapping[str, Any]) -> Sentence | None:
    ago = stats.get("worker_death_ago_seconds")
    if ago is None or ago >= DEATH_SECONDS:
        return None
    total = stats.get("worker_deaths_total") or 0
    text = f"Worker died: one ended {span(ago)} ago without being told to"
    if total > 1:
        text += f", of {count(total)} since the start"
    remedy = (
        "the log has its signal or error; after SIGKILL see if the kernel's log speaks of memory, "
        "after WORKER TIMEOUT what blocked it"
    )
    return Sentence("warn", "worker died", "", text, remedy)


def _not_reloaded(stats: Mapping[str, Any]) -> Sentence | None:
    """Until a reload succeeds: what runs has the old options, and hides what is wrong with those
    that a restart would read. Or it has new settings, with which requests fail."""
    ago, code = stats.get("reload_refused_ago_seconds"), stats.get("reload_problem")
    if ago is None:
        return None
    if code in OF_SETTINGS:
        text = f"Broken settings: --check refuses ({code}) what was loaded {span(ago)} ago"
        remedy = "the log says what to correct; then send HUP again"
        return Sentence("bad", "broken settings", "", text, remedy)
    text = f"Not reloaded: the options were refused ({code}) {span(ago)} ago"
    remedy = "the log says what to correct; then send HUP again: until it succeeds the old options "
    remedy += "stay, and a restart is likely to be refused, too"
    return Sentence("note", "not reloaded", "", text, remedy)


def _stopping(pools: Mapping[str, Any]) -> Sentence:
    in_use = sum(pool.get("in_use") or 0 for pool in pools.values())
    verb = "is" if in_use == 1 else "are"
    text = f"Stopping: {plural(in_use, 'connection')} {verb} still in use"
    remedy = (
        "--graceful-timeout bounds how long that takes, or twice that if a reload was under way"
    )
    return Sentence("note", "stopping", "", text, remedy)


def _ending(ending: int, others: int) -> Sentence:
    text = (
        f"Workers end: {count(ending)} {'finish their' if ending > 1 else 'finishes its'} requests"
    )
    if others > 0:
        text += f", {plural(others, 'other')} {'serve' if others > 1 else 'serves'}"
    remedy = "nothing to do: it is so in a reload, and --graceful-timeout bounds it"
    return Sentence("note", "workers end", "", text, remedy)


def _why_workers_are_slow(stats: Mapping[str, Any], pools: Sequence[_Pool]) -> Sentence | None:
    """Returns what is said of workers that cannot keep up, and of the queues that they make; None
    if they can, or if the queues are the consequence of something else."""
    pressed = [pool for pool in pools if pool.pressed]
    queue = ", ".join(pool.queue_in_words() for pool in pressed)
    bad = any(pool.level == "bad" for pool in pressed)
    if blocked := blocked_worker(stats, queue):
        return replace(blocked, level="bad") if bad else blocked
    # To refuse costs time, too: clients who are refused at once may come back at once.
    refusing = any(pool.lately("timeouts") > pool.lately("acquired") for pool in pools)
    if refusing or any(pool.disruption() is not None for pool in pools):
        return None
    # Who waits for those that all wait for an answer waits for the server.
    if any(pool.waits_for_server(pool.queue_in_words()) for pool in pressed):
        return None
    busy = busy_processor(stats, queue)
    return replace(busy, level="bad") if busy and bad else busy


class _Pool(ViewsInWords):
    """One database, and what is the matter with it."""

    def judge(self, *, explained: bool, short: bool) -> Iterator[Sentence]:
        """Returns what there is to say.

        :param explained: whether workers that cannot keep up explain a queue.
        :param short: whether workers lack file descriptors, which is said already.
        """
        if (disruption := self.disruption()) is not None:
            yield disruption  # it explains refusals and waits, too
            return
        words = self.queue_in_words() if self.pressed else ""
        # While connects fail, whatever asks for more of them makes it worse.
        queue = failing = self.failing_connects("" if explained else words)
        if words and failing is None:
            hanging = self.hanging_statements(words)
            queue = hanging if hanging or explained else next(self._queue(), None)
        elif failing is None and self.many_hang():
            queue = self.hanging_statements("")
        if short and failing is not None and not self.pool.get("connect_error"):
            queue = None  # no server has refused anything
        if queue is not None:
            yield queue
        storm = self._storm() if failing is None else None
        for_more = self._usual_reason() in ("lent", "surplus")
        if for_more and (queue is not None or explained or busy_workers(self.stats)):
            storm = None  # one load, one sentence; and more connections do not help the busy
        slow = self.slow_statements() if queue is None else None
        for other in (slow, self._leak(), storm, self.many_statements(), self.pinned()):
            if other is not None and (queue is None or other.name != queue.name):
                yield other

    # --- A queue, and why ----------------------------------------------------------------------

    @property
    def _suffers(self) -> bool:
        """Whether requests were refused, or wait, or have waited, for seconds: no start explains
        that."""
        waits = self.number("oldest_wait_seconds") if self.number("waiting") else 0.0
        return bool(self.lately("timeouts")) or max(waits, self.wait_p95) >= LONG_WAIT_SECONDS

    def queue_in_words(self) -> str:
        """Who waits, for how long, and who was refused; all that the numbers beside it show."""
        words = []
        if waiting := self.number("waiting"):
            verb = "waits" if waiting == 1 else "wait"
            longest = duration(self.pool.get("oldest_wait_seconds"))
            words.append(f"{plural(waiting, 'request')}{self.of} {verb}, the longest {longest}")
        elif self.lately("waited"):
            share = percent(self.recent.get("waited_share"))
            words.append(f"{share} of requests{self.of} waited {self.window}")
            if bound := self.lately("wait_p95_at_most_seconds"):
                words.append(f"95 % {at_most(bound)}")
        if refused := self.refused_in_words():
            words.append(refused)
        if words and self.pressure_over:
            words.append(f"until {span(self.lately('pressed_ago_seconds'))} ago")
        return ", ".join(words)

    def _queue(self) -> Iterator[Sentence]:
        """Returns the causes of a queue, the first of which counts."""
        queue = self.queue_in_words()
        if slow := self.slow_statements(queue):
            yield slow
        if leak := self._leak(queue):
            yield leak
        if busy := self._busy_worker(queue):
            yield busy
        if pinned := self.pinned(queue):
            yield pinned
        if waiting := self.waiting_views(queue):
            yield waiting
        if many := self.many_statements(queue):
            yield many
        if slow := self.slow_view(queue):
            yield slow
        cap = total_cap(self.stats, self.alias)
        host = (self.stats.get("hosts") or {}).get(self.alias)
        if host and host.get("taken", 0) >= host.get("limit", 0):
            taken = f"all {count(host['limit'])} connections of this host are taken"
            name = "overload" if self.lately("timeouts") else "too small a pool"
            remedy = self._larger_cap()
            if elsewhere := taken_elsewhere(host):
                taken += f", {elsewhere}"
                remedy = f"end the old instance, if it is one (TERM to its master); else {remedy}"
            yield self.say(self.level, name, f"{taken}: {queue}", remedy)
        if self._starting() and cap is not None and self.most_in_use() < cap and not self._suffers:
            return  # after a reload the cap is that of old and new workers for a while
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
            arrive = self.verb(
                "arrive faster than connections come", "arrived faster than connections came"
            )
            yield self.say(
                self.level,
                "overload",
                f"requests {arrive} back, {full}: {queue}{faster}",
                self._larger_cap("more workers or hosts, shorter requests"),
            )
        yield self.say(
            self.level,
            "too small a pool",
            f"{full}: {queue}{faster}",
            self._larger_cap(),
        )

    def _larger_cap(self, other: str = "") -> str:
        """More connections help if views hold them for other things, and also if the server can do
        more at a time; behind one lock they only make its queue longer, as they do before a
        busy processor."""
        if workers := busy_workers(self.stats):
            return f"{processor_remedy(self.stats, workers)} while {busy_in_words(workers)}"
        remedy = cap_remedy(self.stats, self.alias, other)
        if not self.all_ask:
            return remedy
        else_ = (
            "else" if other or cap_option(self.stats, self.alias) else "and"
        )  # no room is a fact
        return (
            "nearly all wait for the server's answers, so see first what for (SHOW PROCESSLIST "
            f"there): behind one lock more connections do not help; {else_} {remedy}"
        )

    def _keep_more(self) -> str:
        if option := size_option(self.stats, self.alias):
            return f"keep more of them open: {option}"
        return f"all that may be are kept open: {cap_remedy(self.stats, self.alias)}"

    def at_cap(self) -> str:
        """How much of what there may be is used."""
        cap, most = total_cap(self.stats, self.alias) or 0, self.most_in_use()
        verb = "are" if self.number("in_use") >= most else "were"
        if most >= cap:
            return f"all {count(cap)} connections{self.of} {verb} in use"
        return f"up to {count(most)} of {count(cap)} connections{self.of} {verb} in use"

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
        limit = min(each * len(self.workers), MAX_PER_HOST)
        return self.say(
            self.level,
            "one busy worker" if len(busy) == 1 else "busy workers",
            f"{who} at the cap, while {rest} {count(caps - used)} of {count(caps)} free: {queue}",
            f"--max-per-host {limit:.0f} lets workers lend each other connections",
        )

    def _leak(self, queue: str = "") -> Sentence | None:
        held = self.number("oldest_held_seconds")
        usual = self.lately("held_p95_at_most_seconds")
        longest = (
            route.get("longest_held_seconds") or 0 for route in self.stats.get("routes") or ()
        )
        if held < LEAK_SECONDS or held < LEAK_TIMES * usual or held < 2 * max(longest, default=0.0):
            return None
        if self.number("in_statement") >= self.number("in_use"):
            return None  # none was forgotten: the server is at work for each
        if self.number("oldest_statement_seconds") >= held / 2:
            return None  # or for the one that is held for longest: as good as all of it is that
        other = f", 95 % of the others {at_most(usual)}" if usual else ""
        text = f"a connection{self.of} has been in use for {duration(held)}{other}"
        remedy = (
            f"--leak-threshold {LEAK_SECONDS / 2:.0f} logs the request and the line that took it"
        )
        if self.number("leaked_total"):  # the option is set
            remedy = "the log names the request and the line that took it"
        level = self.level if queue else "warn"
        return self.say(level, "leak", text + (f"; {queue}" if queue else ""), remedy)

    # --- Others --------------------------------------------------------------------------------

    def _usual_reason(self) -> str:
        """Returns why most of the connections were closed that were; empty if none was."""
        closed: Mapping[str, int] = self.recent.get("closed") or {}
        return max(closed, key=lambda key: closed[key], default="")

    def _starting(self) -> bool:
        """Whether workers have begun, or been replaced, in the last seconds: each opens its
        connections then, and the former ones' are closed."""
        closed: Mapping[str, int] = self.recent.get("closed") or {}
        uptime = self.stats.get("uptime_seconds")
        return bool(closed.get("drain")) or (uptime is not None and uptime < START_SECONDS)

    def _storm(self, queue: str = "") -> Sentence | None:
        """New connections all the time. Those of a start are not closed so soon."""
        opened, acquired = self.lately("opened"), self.lately("acquired")
        closed: Mapping[str, int] = self.recent.get("closed") or {}
        if min(opened, sum(closed.values())) < STORM_OPENED or opened < STORM_SHARE * acquired:
            return None
        if self._starting():
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
    "killed": "see what ends statements: read_timeout, gevent.Timeout, --client-check",
    "abandoned": "see what ends greenlets that hold a connection",
    "drain": "a worker stops: nothing to do, unless it happens all the time",
}


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
    longest = max(recent.get("wait_p95_at_most_seconds") or 0.0 for recent in recents)
    waited += waiting  # as in waited_share
    share = waited / (sum(recent.get("acquired") or 0 for recent in recents) + waiting or 1)
    short = f"{percent(min(1.0, share))} of requests waited a moment"
    return f"{short}, 95 % of all {at_most(longest)}" if longest else short
