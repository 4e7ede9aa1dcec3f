"""What views do with the connections that they hold, where that is why others wait: nothing, too
much, too many small things.

See findings.py, which asks for these in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pooled_serve.status.busy import busy_workers, most_processor_share
from pooled_serve.status.disruptions import PoolInWords
from pooled_serve.status.remedies import WHO_HOLDS, cap_option, total_cap
from pooled_serve.status.sentence import Sentence, recent_routes
from pooled_serve.status.words import count, duration, percent, plural, times

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

ALL_ASK = 0.8
"""Of the connections in use, on average: so many wait for an answer of the server."""

PROCESSOR_SHARE = 0.6
"""Of a processor, used or stood in line for: then a view that runs no statement waits for that."""

NON_ATOMIC = "@transaction.non_atomic_requests"

_MODE = "--pool-mode transaction, and "


class ViewsInWords(PoolInWords):
    """One database, and what views do with its connections."""

    @property
    def all_ask(self) -> bool:
        """Whether nearly all connections in use wait for the server's answers."""
        return (self.recent.get("asking_share") or 0.0) >= ALL_ASK

    def full_workers(self) -> list[Any]:
        return [
            slot
            for slot, its in self.workers
            if its.get("max_outstanding") and its.get("in_use", 0) >= its["max_outstanding"]
        ]

    @property
    def _cap_reached(self) -> bool:
        cap = total_cap(self.stats, self.alias)
        return cap is not None and (self.most_in_use() >= cap or bool(self.full_workers()))

    def stopgap(self, window: str = "5m") -> str:
        """Returns what lets requests wait less until a view is mended; empty if the server has no
        room for it or that is not known, or if the processor is used up.

        :param window: see :func:`cap_option`.
        """
        budget = self.pool.get("budget")
        if budget is None or not self._cap_reached or busy_workers(self.stats):
            return ""
        option = cap_option(self.stats, self.alias, window)
        room = f"(this host may have {plural(budget, 'connection')})"
        return option and f"{option} lets requests wait less {room}"

    def _until_then(self, link: str = "; ") -> str:
        return f"{link}until then {stopgap}" if (stopgap := self.stopgap()) else ""

    def pinned(self, queue: str = "") -> Sentence | None:
        pinned: Mapping[str, int] = self.recent.get("pinned") or {}
        total, acquired = sum(pinned.values()), self.lately("acquired")
        if total < 2 or total < PINNED_SHARE * acquired:
            return None
        reason = max(pinned, key=lambda key: pinned[key])
        share = percent(min(1.0, total / acquired)) if acquired else "all"
        text = (
            f"{share} of leases{self.of} {self.verb('are', 'were')} kept to the end of the request,"
            f" {times(pinned[reason])} because of {_PINS.get(reason, f'“{reason}”')} {self.window}"
        )
        remedy = "do that in an atomic() block or on an alias of its own, or not at all"
        level = self.level if queue else "note"
        return self.say(level, "pinned leases", text + (f": {queue}" if queue else ""), remedy)

    def waiting_views(self, queue: str) -> Sentence | None:
        """All connections are held, and most of them for nothing."""
        asking = self.recent.get("asking_share")
        mode = self.stats.get("pool_mode")
        if asking is None or asking >= ASKING_SHARE or not mode or not self._cap_reached:
            return None
        if most_processor_share(self.stats) >= PROCESSOR_SHARE:
            return None
        run, wait = self.verb("run", "ran"), self.verb("wait", "waited")
        text = f"{percent(1.0 - asking)} of the connections in use{self.of} {run} no statement"
        text += f" {self.window}, their views {wait} for something else: {queue}"
        atomic = self.pool.get("atomic_requests")
        views = f"{NON_ATOMIC} on {self._waiting_route() or 'these views'}"
        remedy = "--pool-mode transaction: a view that asks another service holds none meanwhile"
        if atomic:
            remedy = (
                f"--pool-mode transaction and, as ATOMIC_REQUESTS is on, {views}: only with both "
                "a view that asks another service holds none meanwhile"
            )
        if mode == "transaction":
            remedy = "no atomic() around calls to another service"
            if atomic:
                remedy = f"as ATOMIC_REQUESTS is on: {views}, and {remedy}"
        text += self._waiting_route_in_words()
        return self.say(self.level, "waiting views", text, remedy)

    def _waiting_route(self) -> str:
        """The route that has held connections without a statement for longest; empty if that is
        not known."""
        name, its, _ = max(self.routes(), key=lambda item: _idle(item[1]), default=("", {}, None))
        return name if _idle(its) else ""

    def _waiting_route_in_words(self) -> str:
        route = self._waiting_route()
        if not route:
            return ""
        idle = {name: _idle(its) for name, its, _ in self.routes()}
        share = percent(idle[route] / sum(idle.values()))
        return f"; {route} {self.verb('has', 'had')} most of this time, {share}"

    def many_statements(self, queue: str = "") -> Sentence | None:
        # Without a queue it is no cause of anything, and that of a longer time is surer.
        for route, its, share in self.routes() if queue else recent_routes(self.stats):
            requests = its.get("requests") or 0
            each = (its.get("statements") or 0) / requests if requests else 0.0
            if each >= MANY_STATEMENTS and (share or 0) >= MANY_SHARE:
                runs, holds = self.verb("runs", "ran"), self.verb("holds", "held")
                text = f"{route} {runs} {count(each)} statements for each request"
                text += f" and {holds} {percent(share)} of the connection time"
                level = self.level if queue else "note"
                remedy = "select_related() or prefetch_related() there instead of a query per row"
                return self.say(level, "N+1 queries", text + (f": {queue}" * bool(queue)), remedy)
        return None

    def slow_view(self, queue: str) -> Sentence | None:
        for route, its, share in self.routes()[:1]:
            each = its["held_seconds"] / its["leases"]
            if each < SLOW_SECONDS or (share or 0) < SLOW_SHARE:
                break
            text = f"{route} {self.verb('holds', 'held')} {percent(share)} of the connection time,"
            text += f" {duration(each)} each"
            if self.all_ask:
                remedy = (
                    "nearly all wait for the server's answers: SHOW PROCESSLIST there says what "
                    "for; behind a lock, shorter transactions help, else faster statements"
                    f"{self._until_then(', and ')}; {WHO_HOLDS}"
                )
                return self.say(self.level, "slow view", f"{text}: {queue}", remedy)
            # In transaction mode only atomic() keeps a connection for so long.
            more = "" if self.stats.get("pool_mode") == "transaction" else _MODE
            remedy = (
                f"make its statements faster; if it waits for another service: {more}no atomic() "
                "around that"
            )
            if self.pool.get("atomic_requests"):
                remedy += f", and {NON_ATOMIC} on it, as ATOMIC_REQUESTS is on"
            remedy += self._until_then()
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
        holds = self.verb("holds", "held")
        return f"; {route} {holds} most, {percent(share)} of the time, {each} each"


def _idle(its: Mapping[str, Any]) -> float:
    return float(its.get("idle_seconds") or 0.0)


_PINS = {
    "variable": "SET or a user variable",
    "lock": "GET_LOCK()",
    "table lock": "LOCK TABLES",
    "temporary table": "a temporary table",
    "unbuffered cursor": "an unbuffered cursor",
    "procedure": "a stored procedure",
    "prepared statement": "PREPARE",
}
