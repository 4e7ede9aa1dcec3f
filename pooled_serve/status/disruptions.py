"""What keeps a database from being used, or has until a moment ago: a server that cannot be
reached, that lets nobody in, or that answers nothing.

It explains whatever waits, is held for long or is refused meanwhile, and for as long as the numbers
of the last seconds contain that; so these sentences are asked for first. See findings.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pooled_serve.pool.silence import QUIET_SECONDS
from pooled_serve.status.remedies import LOGIN_REMEDY
from pooled_serve.status.sentence import Sentence, recent_routes
from pooled_serve.status.words import count, duration, plural, span

HANGING_SECONDS = 5.0
"""All statements that run have run for so long, and none of the others has come back..."""
HANGING_TIMES = 3.0
"""... and for so many times as long as a connection is held on the busiest route: they hang."""


class PoolInWords:
    """One database, and what is known of it."""

    def __init__(self, stats: Mapping[str, Any], alias: str, pool: Mapping[str, Any]) -> None:
        self.stats = stats
        self.alias = alias
        self.pool = pool
        self.recent: Mapping[str, Any] = pool.get("recent") or {}
        self.several = len(stats.get("pools") or {}) > 1
        self.of = f" for {alias}" if self.several else ""
        self.workers = [
            (worker.get("slot"), (worker.get("pools") or {}).get(alias) or {})
            for worker in stats.get("workers") or ()
        ]
        self.window = f"in the last {count(self.recent.get('seconds', 10))} s"

    def number(self, key: str) -> float:
        return float(self.pool.get(key) or 0)

    def lately(self, key: str) -> float:
        return float(self.recent.get(key) or 0)

    def say(self, level: str, name: str, problem: str, remedy: str) -> Sentence:
        return Sentence(level, name, self.alias, f"{name[0].upper()}{name[1:]}: {problem}", remedy)

    def refused_in_words(self) -> str:
        """All that got a 503, whether after the whole timeout or at once."""
        refused, early = self.lately("timeouts"), self.lately("shed")
        if not refused:
            return ""
        part = f" ({count(early)} early, in an overload)" if 0 < early < refused else ""
        how = "refused early" if early >= refused else "refused"
        return f"{count(refused)} {how}{part} {self.window}"

    # --- What keeps it from being used -----------------------------------------------------------

    def disruption(self) -> Sentence | None:
        """Returns what is said instead of anything else; None if it can be used."""
        if self.number("stuck") and not self._answers():
            return self._stuck_server()
        if self.pool.get("reachable") is False:
            return self._login_refused() if self.number("login_refused") else self._outage()
        if self.recent.get("lost_ago_seconds") is not None:
            return self._outage_over()
        return None

    @property
    def silence(self) -> float:
        """For how long nobody has got an answer, though somebody has asked."""
        asked = self.number("oldest_statement_seconds")
        answered = self.pool.get("last_answer_seconds")
        return asked if answered is None else min(asked, answered)

    def _answers(self) -> bool:
        """Whether the server has just answered something, though it may let nobody connect."""
        answered = self.pool.get("last_answer_seconds")
        return answered is not None and answered < QUIET_SECONDS

    def hanging_statements(self, queue: str) -> Sentence | None:
        """All connections in use wait for a server that answers others."""
        in_use, hang = self.number("in_use"), self.number("in_statement")
        usual = max(
            (its["held_seconds"] / its["leases"] for _, its, _ in recent_routes(self.stats)),
            default=0.0,
        )
        if not hang or hang < in_use or self.silence < max(HANGING_SECONDS, HANGING_TIMES * usual):
            return None
        text = f"{self._server()} has answered no statement for {duration(self.silence)}"
        each = "the one that runs" if hang == 1 else f"all {count(hang)} that run"
        remedy = (
            "SHOW PROCESSLIST there says what they wait for: often a lock, which another statement "
            "or an open transaction holds (KILL ends it)"
        )
        level = "bad" if self.lately("timeouts") else "warn"
        return self.say(level, "hanging statements", f"{text}, {each}{self.of}: {queue}", remedy)

    def _stuck_server(self) -> Sentence:
        text = f"{self._server()} does not answer"
        if self.silence:
            text = f"{self._server()} has answered nothing for {duration(self.silence)}"
        if hang := self.number("in_statement"):
            text += f", {plural(hang, 'statement')} {_wait(hang)} for it"
        remedy = (
            "see that its process runs and is not stopped, that its disk and the network work, and "
            "what SHOW PROCESSLIST says; restart it if it stays; requests then go on"
        )
        level = "bad" if self.pool.get("reachable") is False else "warn"
        return self.say(level, "stuck server", text + self._costs(), remedy)

    def _server(self) -> str:
        where = self.pool.get("server")
        engine = self.pool.get("engine") or "the server"
        return f"{engine} at {where}" if where else f"{engine} of {self.alias}"

    def _outage(self) -> Sentence:
        remedy = f"see that {self._server()} runs and lets this host in; requests then go on"
        problem = f"the database {self.alias} cannot be reached{self._costs()}"
        return self.say("bad", "outage", problem, remedy)

    def _login_refused(self) -> Sentence:
        problem = f"{self._server()} refuses the login of {self.alias}{self._costs()}"
        return self.say("bad", "login refused", problem, f"{LOGIN_REMEDY}: the log has the error")

    def _outage_over(self) -> Sentence:
        ago = span(self.lately("lost_ago_seconds"))
        text = f"the database {self.alias} could not be used until {ago} ago"
        failed = []
        if errors := self.lately("connect_errors"):
            failed.append(f"{plural(errors, 'attempt')} to connect failed")
        if refused := self.refused_in_words():
            failed.append(refused)
        elif errors:
            failed[-1] += f" {self.window}"
        text = ", ".join([text, *failed])
        level = "warn" if refused else "note"
        return self.say(
            level, "outage over", text, "nothing to do: the log says why, and for how long"
        )

    def _costs(self) -> str:
        """Who waits for the database, and who was refused."""
        parts = [""]
        if waiting := self.number("waiting"):
            what = " for a connection" if self.number("in_statement") else ""
            parts.append(f"{plural(waiting, 'request')} {_wait(waiting)}{what}")
        if refused := self.lately("timeouts"):
            parts.append(f"{count(refused)} refused {self.window}")
        return ", ".join(parts)


def _wait(number: float) -> str:
    return "waits" if number == 1 else "wait"
