"""What the log says about pools, databases and workers, for tests that wait for it or forbid it.

Most of these tests start servers, and some take long. So each text is here once, and
tests/status/test_log_samples.py compares it with the code in a moment.
"""

from __future__ import annotations

import re

# --- Requests that wait, or are refused ---

AT_CAP = "is at its cap"
OVERLOADED = "is overloaded, late requests get 503"
OVER = "the pressure is over"
GOT_503 = "503 Service Unavailable"
NO_DATABASE = "refused: no connection to the database for"

PRESSURE = re.compile(
    r"\[(?P<level>INFO|WARNING)\] pool 'default' is at its cap: (?P<in_use>\d+) in use, "
    r"(?P<idle>\d+) idle, (?P<waiting>\d+) waiting, cap (?P<cap>\d+), longest held "
    r"(?P<held>\d+\.\d)s by (?P<holder>.+); the first has waited (?P<waited>\d+\.\d)s"
)
RELIEF = re.compile(
    r"\[(?P<level>INFO|WARNING)\] pool 'default': the pressure is over, no wait above "
    r"(?P<long>[\d.]+)s in the last (?P<calm>\d+)s; requests that got 503 in \d+s: "
    r"(?P<refused>\d+)(?:, \d+ of them early)?$",
    re.MULTILINE,
)
_STATE = (
    r"\((?P<in_use>\d+) in use, (?P<idle>\d+) idle, (?P<waiting>\d+) waiting, cap (?P<cap>\d+), "
    r"longest held (?P<held>\d+\.\d)s by (?P<holder>.+)\)"
)
REFUSED = re.compile(
    r"\[WARNING\] 503 Service Unavailable.*: pool 'default': no connection within "
    rf"(?P<timeout>\d+)s {_STATE}"
)
EARLY = re.compile(
    r"\[WARNING\] 503 Service Unavailable.*: pool 'default': refused after \d+\.\ds: requests "
    rf"arrive faster than connections come back {_STATE}"
)

# --- The database ---

LOST = "cannot be reached"
STUCK = "does not answer"
SILENT = "answered nothing for"
FULL = " is full: "
LOGIN_REFUSED = "refuses the login: "
NO_MORE = "cannot open another connection"
BACK = "is back after"
ROOM_AGAIN = "has connections left again after"
LOGIN_AGAIN = "lets the user log in again after"

STATEMENTS_HANG = "statements hang, none has been answered for"
STATEMENTS_GO_ON = "statements go on, none had been answered for"
OTHERS_ANSWERED = "while others are answered"
FIRST_HAS_ENDED = "the first of the statements that hung has ended, after"

# --- Leases and requests ---

HELD = "a connection has been held for"
HELD_BACK = "came back after"
CLIENT_GONE = "a client has hung up, and its request was ended"

# --- The worker ---

BLOCKED = "this worker let no request run for"
NO_DESCRIPTOR = "this process has no file descriptor left"


def refused(log: str) -> int:
    """How many requests got a 503, as the lines tell that say the pressure is over."""
    return sum(int(match["refused"]) for match in RELIEF.finditer(log))
