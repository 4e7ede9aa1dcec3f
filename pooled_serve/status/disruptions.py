"""What keeps a database from being used, or has until a moment ago: a server that cannot be
reached, that lets nobody in, or that answers nothing.

It explains whatever waits, is held for long or is refused meanwhile, and for as long as the numbers
of the last seconds contain that; so these sentences are asked for first. See findings.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pooled_serve.driver.error_codes import FULL, LOGIN_REFUSED
from pooled_serve.pool.silence import QUIET_SECONDS
from pooled_serve.status.episodes import CONNECTS, HANG, OUTAGE
from pooled_serve.status.figures import (
    BETWEEN_SECONDS,
    HANGING_SECONDS,
    HANGING_TIMES,
    MANY_HANG,
    MANY_WAIT,
    SHORT_WAIT_SECONDS,
    are_slow,
    hang,
    hangs_on,
    silence,
)
from pooled_serve.status.remedies import (
    FULL_REMEDY,
    HANGING_REMEDY,
    LOGIN_REMEDY,
    STUCK_REMEDY,
    WHO_HOLDS,
    connect_remedy,
)
from pooled_serve.status.sentence import Sentence, usual_hold
from pooled_serve.status.words import count, duration, listed, plural, span, times

THEN = "requests then go on"
FAILURES = "connect_errors"


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

    @property
    def level(self) -> str:
        return "bad" if self.lately("timeouts") and not self.pressure_over else "warn"

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
    def pressure_over(self) -> bool:
        """Whether that is so no more, though the numbers of the last seconds still have it."""
        ago = self.recent.get("pressed_ago_seconds")
        if ago is None or ago < BETWEEN_SECONDS or self.number("waiting"):
            return False
        return self.pressed

    def verb(self, now: str, then: str) -> str:
        """Returns the one that fits a queue of the last seconds."""
        return then if self.pressure_over else now

    @property
    def wait_p95(self) -> float:
        return self.lately("wait_p95_seconds")

    def most_in_use(self) -> float:
        """Of this moment and the last minutes: at the cap there are moments with one less."""
        peaks = (self.pool.get("peaks") or {}).get("5m") or {}
        return max(self.number("in_use"), peaks.get("in_use") or 0)

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
        if self.recent.get("hung_ago_seconds") is not None and not self.hangs():
            return self._hanging_over()
        return None

    @property
    def silence(self) -> float:
        """For how long nobody has got an answer, though somebody has asked."""
        asked = self.number("oldest_statement_seconds")
        return silence(asked, self.pool.get("last_answer_seconds"))

    def _answers(self) -> bool:
        """Whether the server has just answered something, though it may let nobody connect."""
        answered = self.pool.get("last_answer_seconds")
        return answered is not None and answered < QUIET_SECONDS

    def hanging_statements(self, queue: str) -> Sentence | None:
        """All connections in use wait for a server that answers others, or for one of which it is
        not known yet whether it answers anything."""
        if not self.hangs():
            doubtful = self.silence >= max(QUIET_SECONDS, HANGING_TIMES * usual_hold(self.stats))
            all_ask = self.number("asking") >= self.number("in_use")
            early = self.silence < HANGING_SECONDS
            return self._silent_server(queue) if doubtful and all_ask and early else None
        statements = self.number("in_statement")
        if self._all_hang():
            text = f"{self._server()} has answered no statement for {duration(self.silence)}"
            each = "the one that runs" if statements == 1 else f"all {count(statements)} that run"
            text = f"{text}, {each}{self.of}"
        else:
            text = f"{plural(statements, 'statement')} at {self._server()}{self.of} hang, the first"
            text += f" for {duration(self.number('oldest_statement_seconds'))}"
        problem = text + (f": {queue}" if queue else "")
        return self.say(self.level, "hanging statements", problem, HANGING_REMEDY)

    def waits_for_server(self, queue: str) -> bool:
        """Whether all connections in use wait for its answers, and have for a while."""
        return self.number("in_use") > 0 and self.hanging_statements(queue) is not None

    def slow_statements(self, queue: str = "") -> Sentence | None:
        """Several have had no answer for long, while others are answered: they may wait for the
        lock of a row. They explain a queue if they have most of the connections, and
        what the other ones ask for is answered."""
        statements, oldest = self.number("in_statement"), self.number("oldest_statement_seconds")
        if not are_slow(statements, oldest, usual_hold(self.stats)) or self.hangs():
            return None
        others = statements < self.number("in_use") and self._answers()
        if queue and not (others and self._most_are_in_statements()):
            return None
        text = f"{count(statements)} statements at {self._server()}{self.of} have had no answer for"
        text += f" a second or more, the first for {duration(oldest)}, while others are answered"
        text += f": {queue}" * bool(queue)
        level = self.level if queue else "warn"
        return self.say(level, "slow statements", text, HANGING_REMEDY)

    def many_hang(self) -> bool:
        """Whether so many do that it matters although nobody waits for a connection."""
        return self.number("in_statement") >= MANY_HANG and self.hangs()

    def hangs(self) -> bool:
        """Whether statements hang at this moment. They may be the reports that somebody runs."""
        return self._all_hang() or (self._hang_on() and self._most_are_in_statements())

    def _all_hang(self) -> bool:
        """Whether all connections in use wait for answers, and nobody has got one."""
        numbers = self.number("in_use"), self.number("in_statement"), self.silence
        return hang(*numbers, usual_hold(self.stats))

    def _hang_on(self) -> bool:
        """Whether one that hung with all others has not been answered since."""
        ago = self.recent.get("hung_ago_seconds")
        return ago is not None and hangs_on(self.number("oldest_statement_seconds"), ago)

    def _most_are_in_statements(self) -> bool:
        return 2 * self.number("in_statement") > self.number("in_use")

    def suffers_from_hang(self) -> bool:
        """Whether they do, and it matters: requests wait for a connection, or many hang."""
        waits = self.pressed or self.number("waiting") > 0
        return self.hangs() if waits else self.many_hang()

    def _hanging_over(self) -> Sentence:
        text = f"all that ran at {self._server()}{self.of} hung"
        waits, its = self.number("waiting"), self.recent.get(HANG) or {}
        if waits or its.get("waited") or its.get("timeouts"):
            text += ", and kept requests waiting" + "," * bool(_lasted(its))
        text += f"{_lasted(its)} until {span(self.lately('hung_ago_seconds'))} ago"
        if self._hang_on():
            oldest = duration(self.number("oldest_statement_seconds"))
            text += f", and the first still does, for {oldest}"
        return self.say(
            _level_of(its),
            "statements go on",
            text + _in_all(its),
            "nothing to do now; if it happens again, SHOW PROCESSLIST there says meanwhile what "
            f"they wait for; {WHO_HOLDS}",
        )

    def _silent_server(self, queue: str) -> Sentence:
        text = f"{self._server()} has answered nothing for {duration(self.silence)}{self.of}"
        remedy = (
            "wait some seconds: it is asked whether it answers at all; if it does, SHOW "
            f"PROCESSLIST there says what the statements wait for; {WHO_HOLDS}"
        )
        return self.say(self.level, "silent server", f"{text}: {queue}", remedy)

    def _stuck_server(self) -> Sentence:
        text = f"{self._server()} does not answer"
        if self.silence:
            text = f"{self._server()} has answered nothing for {duration(self.silence)}"
        if hang := self.number("in_statement"):
            text += f", {plural(hang, 'statement')} {_wait(hang)} for it"
        level = "bad" if self.pool.get("reachable") is False else "warn"
        return self.say(level, "stuck server", text + self._costs(), STUCK_REMEDY)

    def _server(self) -> str:
        where = self.pool.get("server")
        engine = self.pool.get("engine") or "the server"
        return f"{engine} at {where}" if where else f"{engine} of {self.alias}"

    def _outage(self) -> Sentence:
        lasts, why = self._lost_for(), self.error_in_words()
        if self.pool.get("connect_error") in FULL:
            has = "has had" if lasts else "has"
            text = f"{self._server()} {has} no connection left for {self.alias}"
            return self.say(
                "bad", "server full", f"{text}{lasts}{why}{self._costs()}", f"{FULL_REMEDY}; {THEN}"
            )
        text = f"the database {self.alias} cannot be reached"
        if lasts:
            text = f"the database {self.alias} has been out of reach"
        remedy = f"see that {self._server()} runs and lets this host in; {THEN}"
        return self.say("bad", "outage", f"{text}{lasts}{why}{self._costs()}", remedy)

    def _login_refused(self) -> Sentence:
        text = f"{self._server()} refuses the login of {self.alias}"
        if lasts := self._lost_for():
            text = f"{self._server()} has refused the login of {self.alias}{lasts}"
        problem = f"{text}{self.error_in_words()}{self._costs()}"
        return self.say("bad", "login refused", problem, f"{LOGIN_REMEDY}; the log has the error")

    def _lost_for(self) -> str:
        """For how long it has been so; nothing in the first second."""
        lost = self.number("lost_seconds")
        return f" for {span(lost)}" if lost >= 1 else ""

    def error_in_words(self) -> str:
        """What the last attempt to connect failed with, in parentheses: the log has its text."""
        code = self.pool.get("connect_error")
        return f" (error {code})" if code else ""

    def _last_error(self) -> int | None:
        """The number of the error of the last connect that failed, also in a worker that has ended
        since, as with a HUP."""
        error: int | None = self.recent.get("connect_failed_error")
        return error or self.pool.get("connect_error")

    def failing_connects(self, queue: str) -> Sentence | None:
        """Attempts to connect failed, though there are connections, or have been since."""
        errors = self.lately("connect_errors")
        if not errors:
            return None
        again = self.recent.get("connects_again")
        code = self._last_error()
        why = f" (error {code})" if code else ""
        its = self.recent.get(CONNECTS) or {}
        past = self.recent.get("connect_failed_ago_seconds")
        ago = "" if past is None else f" until {span(past)} ago"
        if past is not None and (its.get(FAILURES) or errors) == 1:
            ago = f", {span(past)} ago"
        if again and (not queue or self.pressure_over):
            seconds = its.get("seconds") or 0.0
            when = f" in {span(seconds)}" * (seconds >= 1) + ago
            failed = f"connecting to {self.alias} failed {times(its.get(FAILURES) or errors)}{when}"
            text = f"{failed}{why}, and has worked since{_in_all(its, besides=FAILURES)}"
            return self.say(_level_of(its), "connects work again", text, "nothing to do now")
        problem = f"connecting to {self.alias} failed {times(errors)}"
        problem += f"{ago}{why}, and has worked since" if again else f" {self.window}{why}"
        problem += f": {queue}" * bool(queue)
        return self.say(self.level, "failing connects", problem, connect_remedy(code))

    def _outage_over(self) -> Sentence:
        its = self.recent.get(OUTAGE) or {}
        name, text = "outage over", f"the database {self.alias} could not be used"
        remedy = "nothing to do: the log says why"
        # If no connect has failed in it, the error is that of another time.
        code = self._last_error() if its.get(FAILURES) else None
        if code in LOGIN_REFUSED:
            name, text = "login works again", f"{self._server()} refused the login of {self.alias}"
        elif code in FULL:  # who had a connection could use it
            name = "server has room again"
            text = f"{self._server()} had no connection left for {self.alias}"
            remedy = f"nothing to do now; if it happens again: {FULL_REMEDY}"
        text += f"{_lasted(its)} until {span(self.lately('lost_ago_seconds'))} ago{_in_all(its)}"
        return self.say(_level_of(its), name, text, remedy)

    def _costs(self) -> str:
        """Who waits for the database, and who was refused."""
        parts = [""]
        if waiting := self.number("waiting"):
            what = " for a connection" if self.number("in_statement") else ""
            parts.append(f"{plural(waiting, 'request')} {_wait(waiting)}{what}")
        if refused := self.lately("timeouts"):
            parts.append(f"{count(refused)} refused {self.window}")
        if failed := self.lately("failed"):
            parts.append(f"{count(failed)} got 500 {self.window}")
        return ", ".join(parts)


def _level_of(its: Mapping[str, float]) -> str:
    """How much a trouble that is over matters: more if requests have failed."""
    return "warn" if its.get("timeouts") or its.get("failed") else "note"


def _lasted(its: Mapping[str, float]) -> str:
    """For how long there was a trouble that is over; nothing if it was a moment."""
    lasted, seconds = its.get("lasted_seconds") or 0.0, its.get("seconds") or 0.0
    if lasted < 1:
        return ""
    pauses = seconds - lasted > BETWEEN_SECONDS
    return f" for {span(lasted)}" + f" of {span(seconds)}" * pauses


def _in_all(its: Mapping[str, float], besides: str = "") -> str:
    """What a trouble that is over has cost from its beginning on.

    :param besides: a key of what is said already.
    """
    early = its.get("shed") or 0
    part = f" ({count(early)} early, in an overload)" if early else ""
    words = {
        "waited": f"{plural(its.get('waited') or 0, 'request')} waited",
        "timeouts": f"{plural(its.get('timeouts') or 0, 'request')} got 503{part}",
        "failed": f"{plural(its.get('failed') or 0, 'request')} got 500",
        FAILURES: f"{plural(its.get(FAILURES) or 0, 'attempt')} to connect failed",
    }
    said = [text for key, text in words.items() if its.get(key) and key != besides]
    return f"; in all {listed(said)}" if said else ""


def _wait(number: float) -> str:
    return "waits" if number == 1 else "wait"
