"""What a pool counts. Each metric is declared once: its kind, its keys, its meaning, its place.
See metric.py for what a kind is.

A pool counts into its *row*, a sequence of floats. By default that is a list of its own; where
there is a status listener, it is memory that the other workers read, and still each count is a
single store. Whole numbers are exact in a float up to 2**53.

``/stats.json`` (:func:`by_name`), the sum over workers (:func:`total`) and ``/metrics`` all derive
from :data:`METRICS`. What else a new metric needs is in tests/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from pooled_serve.pool.metric import Kind, Metric, Row

BUCKET_BOUNDS_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper bounds of the histograms' buckets; one more bucket has no bound. A duration belongs to
``bisect_left(BUCKET_BOUNDS_SECONDS, seconds)``."""

_BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1

CLOSE_REASONS = (
    *("age", "surplus", "drain", "cleared", "closed", "lent"),  # in good order
    *("dead", "lost", "moved"),  # the server's doing
    *("dirty", "unread", "reset failed", "abandoned", "killed"),  # the user's
    *("direct use", "lasting state"),
    "other",
)
PIN_REASONS = (
    *("variable", "role", "database", "table lock", "lock", "prepared statement"),
    *("temporary table", "procedure", "LAST_INSERT_ID(expr)", "SQL_CALC_FOUND_ROWS"),
    *("several statements", "several results", "unbuffered cursor", "direct use", "unknown"),
    *("connection id", "sequence"),
    # What a reset does not undo.
    *("profiling", "resource group", "optimizer trace", "performance schema", "XA transaction"),
)

UNKNOWN, YES, NO = range(3)
"""Values of REACHABLE, in the order in which one outweighs the other."""


METRICS: list[Metric] = []


def _declare(kind: Kind, key: str, help: str, *, width: int = 1, **more: Any) -> int:
    start = METRICS[-1].start + METRICS[-1].width if METRICS else 0
    METRICS.append(Metric(kind, key, help, start, width, **more))
    return start


def _by_reason(key: str, help: str, reasons: tuple[str, ...]) -> dict[str, int]:
    start = _declare(Kind.COUNTER, key, help, width=len(reasons), reasons=reasons)
    return {reason: start + i for i, reason in enumerate(reasons)}


def _histogram(key: str, help: str, *, otel: str) -> tuple[int, int]:
    start = _declare(Kind.HISTOGRAM, key, help, width=1 + _BUCKETS, otel=otel)
    return start, start + 1


# --- What is counted. Counters and histograms come first: they outlive a worker. ---------------

ACQUIRED = _declare(
    Kind.COUNTER,
    "acquired_total",
    "Connections handed out. If it rises faster than requests arrive, each takes several: normal "
    "with --pool-mode transaction, else look for greenlets that the project spawns.",
)
WAITED = _declare(
    Kind.COUNTER,
    "waited_total",
    "Connections handed out after a wait. If it rises, see which routes hold them "
    "(pooled_serve_route_held_seconds_total): shorten these, or raise --max-outstanding or "
    "--max-per-host, whichever is reached.",
)
TIMEOUTS = _declare(
    Kind.COUNTER,
    "timeouts_total",
    "Requests that were refused a connection, and got 503. If it rises, the log says why: if "
    "pooled_serve_reachable is 0, mend the database; else do as for pooled_serve_waited_total.",
    otel="timeouts",
)
SHED = _declare(
    Kind.COUNTER,
    "shed_total",
    "Requests that were refused early, because they arrive faster than connections come back. If "
    "it rises, do as for pooled_serve_waited_total, or add hosts.",
)
FAILED = _declare(
    Kind.COUNTER,
    "failed_total",
    "Requests that got 500 because the server refuses the login, or the connect for another reason "
    "that does not pass by itself. If it rises, the log has the error: correct USER, PASSWORD and "
    "NAME, or the account.",
)
OUTAGE_WAITS = _declare(
    Kind.COUNTER,
    "outage_waits_total",
    "Requests that waited for a database that could not be reached. If it rises, look at the "
    "database server and the network to it; the log has the error.",
)
RETRIED = _declare(
    Kind.COUNTER,
    "retried_total",
    "Statements that found their connection dead, and ran again. If it rises and the database was "
    "not restarted, something on the way closes idle connections: lower --conn-max-age.",
)
KILLED = _declare(
    Kind.COUNTER,
    "killed_total",
    "Abandoned statements that were ended at the server. If it rises, requests end in the middle "
    "of statements: see gevent.Timeout in the project, read_timeout in OPTIONS, --client-check.",
)
CLIENT_GONE = _declare(
    Kind.COUNTER,
    "client_gone_total",
    "Requests that were ended because their client had hung up. If it rises, they take longer than "
    "clients wait: shorten the routes with the longest leases.",
)
OPENED = _declare(
    Kind.COUNTER,
    "opened_total",
    "Connections opened. If it rises with the traffic, they are not kept: raise --pool-size, and "
    "see by pooled_serve_closed_total why they are closed.",
)
CONNECT_ERRORS = _declare(
    Kind.COUNTER,
    "connect_errors_total",
    "Failed attempts to connect. If it rises, the log has the error: check that the server runs, "
    "its max_connections and the password.",
)
UNANSWERED = _declare(
    Kind.COUNTER,
    "unanswered_total",
    "Pings and attempts to connect that got no answer in time. If it rises, the server hangs or "
    "the network drops packets: see whether the server answers others, and its disk.",
)
OUTAGES = _declare(
    Kind.COUNTER,
    "outages_total",
    "How often a worker has lost the database: it could not be reached, or answered nothing. If it "
    "rises, the log has the reason and how long it took: look at the server and the network to it.",
)
RESET = _declare(
    Kind.COUNTER,
    "reset_total",
    "Sessions reset for the next user, for a round trip each. If it rises with the traffic, a view "
    "or a receiver of connection_created sends SET: put that into init_command of OPTIONS.",
)
LEAKED = _declare(
    Kind.COUNTER,
    "leaked_total",
    "Leases longer than --leak-threshold. If it rises, the log has the stack that took each: give "
    "the connection back before what takes so long.",
)
CLOSED = _by_reason(
    "closed_total",
    "Connections closed, by reason. If it rises for surplus, raise --pool-size; for dead, lost or "
    "moved, look at the server and what is on the way; for abandoned, killed, unread or dirty, "
    "find the requests that end in the middle of their work; the others are in good order.",
    CLOSE_REASONS,
)
PINNED = _by_reason(
    "pinned_total",
    "Leases of transaction mode that last to the end, by reason. If it rises, requests keep their "
    "connection as in request mode: remove the statements that the reason names, or run them where "
    "little follows.",
    PIN_REASONS,
)
WAIT_SECONDS, WAIT_BUCKETS = _histogram(
    "wait_seconds",
    "Waiting for a connection, served or not. If it rises, do as for pooled_serve_waited_total.",
    otel="wait_time_seconds",
)
HELD_SECONDS, HELD_BUCKETS = _histogram(
    "held_seconds",
    "Between hand-out and return. If it rises, statements are slow, or views call others "
    "meanwhile: pooled_serve_route_held_seconds_total says which; for the latter use --pool-mode "
    "transaction.",
    otel="use_time_seconds",
)
CREATE_SECONDS, CREATE_BUCKETS = _histogram(
    "create_seconds",
    "Opening a connection. If it rises, the server is busy, or names resolve slowly: give its "
    "address in HOST, and raise --pool-size so that fewer are opened.",
    otel="create_time_seconds",
)

FIRST_GAUGE = SIZE = _declare(
    Kind.GAUGE,
    "size",
    "Most idle connections that are kept. A setting: --pool-size. If it falls, a worker is "
    "missing.",
    otel="idle_max",
)
CAP = _declare(
    Kind.GAUGE,
    "max_outstanding",
    "Most connections of a worker. A setting: --max-outstanding. With --max-per-host all together "
    "have at most pooled_serve_host_limit. If it falls, a worker is missing.",
    otel="max",
)
_COUNT = (
    "Connections by state. If used rises to db_client_connection_max and stays, or that of all "
    "workers to pooled_serve_host_limit, the next requests wait: do as for "
    "pooled_serve_waited_total."
)
IN_USE = _declare(Kind.GAUGE, "in_use", _COUNT, otel="count", state="used")
IDLE = _declare(Kind.GAUGE, "idle", _COUNT, otel="count", state="idle")
CONNECTING = _declare(
    Kind.GAUGE,
    "connecting",
    "Connections that are being opened. If it rises and stays, the server is slow to answer: see "
    "db_client_connection_create_time_seconds.",
)
CLOSING = _declare(
    Kind.GAUGE,
    "closing",
    "Connections that came back, and are being reset or closed. If it rises and stays, the server "
    "is slow to end abandoned statements: see pooled_serve_killed_total.",
)
WAITING = _declare(
    Kind.GAUGE,
    "waiting",
    "Requests that wait for a connection. If it rises and stays, do as for "
    "pooled_serve_waited_total.",
    otel="pending_requests",
)
OLDEST_WAIT = _declare(
    Kind.SINCE,
    "oldest_wait_seconds",
    "How long the first in the queue has waited. If it rises to half of --pool-timeout, requests "
    "are refused: do as for pooled_serve_waited_total.",
)
OLDEST_HELD = _declare(
    Kind.SINCE,
    "oldest_held_seconds",
    "How long the longest lease has lasted. If it rises for minutes, a connection leaks or waits "
    "for a lock: --leak-threshold logs who has taken it.",
)
ASKING = _declare(
    Kind.GAUGE,
    "asking",
    "Connections in use that wait for an answer of the server at this moment. If it falls far "
    "below those in use while requests wait, views hold connections while they do something else, "
    "such as asking another service: use --pool-mode transaction.",
)
IN_STATEMENT = _declare(
    Kind.GAUGE,
    "in_statement",
    "Connections in use whose statement has waited for an answer for a second or more. If it rises "
    "to all in use and stays, statements wait for a lock, or the server hangs: SHOW PROCESSLIST "
    "there says for what.",
)
OLDEST_STATEMENT = _declare(
    Kind.SINCE,
    "oldest_statement_seconds",
    "How long the oldest statement, ping or connect has had no answer. If it rises for "
    "minutes, a statement waits for a lock: SHOW PROCESSLIST on the server says for which. If "
    "pooled_serve_last_answer_seconds rises with it, no other is answered either.",
)
LAST_ANSWER = _declare(
    Kind.LATEST,
    "last_answer_seconds",
    "Since the server last answered. If it rises together with "
    "pooled_serve_oldest_statement_seconds, the server hangs: look at its process and its disk. "
    "If that is 0, nobody asks.",
)
STUCK = _declare(
    Kind.GAUGE,
    "stuck",
    "Workers that the server does not answer, though it lets them ask. If it rises, look at the "
    "server's process and disk, and at the network to it.",
)
LAST_OUTAGE = _declare(
    Kind.LATEST,
    "last_outage_seconds",
    "Since the database could last not be used, or requests still waited because of that. If it "
    "falls to 0, see pooled_serve_reachable and pooled_serve_stuck.",
)
_LONGEST = "The longest wait that ended a moment ago. If it rises, see pooled_serve_waited_total."
MOST_IN_USE = _declare(
    Kind.GAUGE,
    "most_in_use",
    "Most connections in use a moment ago, also between two looks at the gauges. If it rises, see "
    "pooled_serve_waited_total.",
)
LONGEST_WAIT = _declare(Kind.LONGEST, "longest_wait_seconds", _LONGEST)
REACHABLE = _declare(
    Kind.REACHABLE,
    "reachable",
    "Whether the database could be reached when last tried. If it falls to 0, the log has the "
    "error: look at the database server and the network to it.",
)
_LOGIN = "Workers that the server refuses a login. If it rises, correct USER and PASSWORD, or NAME."
LOGIN_REFUSED = _declare(Kind.GAUGE, "login_refused", _LOGIN)
LOST = _declare(
    Kind.SINCE,
    "lost_seconds",
    "For how long the database has not been reached. If it rises, look at the database server and "
    "the network to it: pooled_serve_connect_error and the log say what failed.",
)
CONNECT_ERROR = _declare(
    Kind.ERROR,
    "connect_error",
    "Number of the error of the last attempt to connect that failed: 2003 if nobody answers, 1040 "
    "if the server is full, 1045 if the password is refused. If it rises from 0, the log has its "
    "text.",
    width=3,
)

ROW_LENGTH = METRICS[-1].start + METRICS[-1].width


# --- Reading -----------------------------------------------------------------------------------


def new_row() -> Row:
    """Returns a row of zeros."""
    return [0.0] * ROW_LENGTH


def total(rows: Iterable[Sequence[float]]) -> list[float]:
    """Returns the sum of several rows, by the rule of each metric's kind."""
    rows = list(rows)
    summed = [sum(column) for column in zip(*rows, strict=True)]
    for metric in METRICS:
        column = [row[metric.start] for row in rows]
        if metric.kind in (Kind.REACHABLE, Kind.LATEST, Kind.LONGEST):
            summed[metric.start] = max(column)
        elif metric.kind is Kind.SINCE:
            summed[metric.start] = min(filter(None, column), default=0.0)
        elif metric.kind is Kind.ERROR and rows:
            at = metric.start
            latest = max(rows, key=itemgetter(at + 1))
            summed[at : at + 2] = latest[at : at + 2]
            summed[at + 2] = max(row[at + 2] for row in rows)
    return summed


def by_name(row: Sequence[float], now: float) -> dict[str, Any]:
    """Returns the numbers of a row by their keys in ``/stats.json``.

    :param now: seconds of the pool's clock.
    """
    found: dict[str, Any] = {}
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            found[f"{metric.key}_total"] = row[metric.start]
            found[f"{metric.key}_buckets"] = buckets(metric, row)
        elif metric.reasons:
            found[metric.key] = {reason: int(n) for reason, n in by_reason(metric, row) if n}
        elif metric.kind is Kind.REACHABLE:
            found[metric.key] = {UNKNOWN: None, YES: True, NO: False}[int(row[metric.start])]
        elif metric.kind is Kind.SINCE:
            found[metric.key] = age(row[metric.start], now)
        elif metric.kind is Kind.LATEST:
            found[metric.key] = age(row[metric.start], now) if row[metric.start] else None
        elif metric.kind is Kind.LONGEST:
            found[metric.key] = row[metric.start]
        elif metric.kind is Kind.ERROR:
            found[metric.key] = int(row[metric.start]) or None
        else:
            value = row[metric.start]
            found[metric.key] = None if value == math.inf else int(value)
    return found


def age(since: float, now: float) -> float:
    """Returns the seconds since then, for a metric of SINCE or LATEST; 0 if it is not set."""
    return max(0.0, now - since) if since else 0.0


def by_reason(metric: Metric, row: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Returns each reason with its number."""
    return zip(metric.reasons, row[metric.start : metric.start + metric.width], strict=True)


def buckets(metric: Metric, row: Sequence[float]) -> dict[str, int]:
    """Returns upper bound -> how many took no longer, as Prometheus counts them."""
    counts = [int(n) for n in row[metric.start + 1 : metric.start + metric.width]]
    if metric.start == WAIT_SECONDS:
        # Callers that did not queue are not counted there, even if they had to ping or connect, to
        # keep the fast path short. They appear in the first bucket.
        counts[0] += max(0, int(row[ACQUIRED] - row[WAITED]))
    names = [*(f"{bound:g}" for bound in BUCKET_BOUNDS_SECONDS), "+Inf"]
    return {name: sum(counts[: i + 1]) for i, name in enumerate(names)}
