"""What a login sets that a reset does not restore, found out by trying.

A reset returns a session to the server's defaults, and the client replays what it asked for when it
connected. Still missing is what the server sets at a login and only there: it runs
``init_connect``, applies an account's MAX_STATEMENT_TIME, gives interactive clients another
wait_timeout. No list of these would be complete. So once for each server and account a fresh
connection is reset, and all its session variables are compared before and after. Those that differ
are set after each reset from then on. Where that is not possible, dirty connections are closed
instead of reset.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from pymysql.constants.COMMAND import COM_QUERY
from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver.error_codes import CR_SERVER_LOST, is_not_ready, is_unknown_command
from pooled_serve.driver.statements import classify

COMPARE_AGAIN_SECONDS = 300.0
"""Seconds until logins are compared again: an administrator may have changed the server."""

RETRY_COMPARISON_SECONDS = 10.0
"""The same after a comparison that failed."""

MAX_LOGINS = 256
"""Logins that are cached: a project may have an account for each tenant."""

Command = tuple[int, bytes]
Answer: TypeAlias = Sequence[tuple[Any, ...]] | MySQLError
"""Rows, possibly none, or the server's error."""

UNKNOWN = "what a login sets is not known yet"


class Client(Protocol):
    """What this module needs of a connection."""

    def login_key(self) -> tuple[Any, ...]:
        """Equal for connections whose logins set the same."""

    def reset_commands(self, restore: bytes = b"") -> list[Command]:
        """Returns the commands that make its session like a fresh one.

        :param restore: the statement for what only a login sets; empty for none.
        """

    def pipeline(self, commands: Sequence[Command]) -> list[Answer]:
        """Run the commands in one round trip. Returns an answer for each."""


class ConnectAgain(OperationalError):  # type: ignore[misc]  # PyMySQL has no types
    """The connection was used up to find out what a login sets, and must be closed. The caller
    connects again; its next connection is not used up."""


class Stalled(OperationalError):  # type: ignore[misc]  # PyMySQL has no types
    """A command that was sent together with others was not answered. The next connection sends them
    one at a time."""


class Login:
    """What is known of the logins to one server with one account."""

    __slots__ = ("compare_at", "obstacle", "restore")

    def __init__(self, compare_at: float) -> None:
        self.compare_at = compare_at
        """When to compare again, in seconds of :func:`time.monotonic`."""
        self.restore = b""
        """The statement that sets what a reset does not restore; empty if there is nothing."""
        self.obstacle: str | None = UNKNOWN
        """Why a session cannot be made like a fresh one; None if it can."""


_logins: OrderedDict[tuple[Any, ...], Login] = OrderedDict()


def learn_login(client: Client, *, compare: bool = True) -> Login:
    """Returns what is known of the logins of this connection, which is fresh and set up.

    Compares if nothing is known, or if that is old, which takes one round trip, or three if a reset
    does not restore everything. Other callers do not wait for it: until it is done, connections
    opened meanwhile are closed when dirty.

    :param compare: whether the connection may be used up for a comparison.
    :raises ConnectAgain: it was used up.
    """
    now = time.monotonic()
    key = client.login_key()
    login = _logins.get(key)
    if login is not None and now < login.compare_at:
        return login
    if not compare:
        return Login(now)
    login = _logins[key] = Login(now + RETRY_COMPARISON_SECONDS)
    _logins.move_to_end(key)
    if len(_logins) > MAX_LOGINS:
        _logins.popitem(last=False)
    try:
        login.restore, login.obstacle = _compare(client)
    except MySQLError as error:
        if is_not_ready(error):
            forget_login(client)  # nothing was learnt, and no other connection would tell more
            raise
        if isinstance(error, Stalled):
            forget_login(client)  # the next one asks in another way
        login.obstacle = f"the session variables of a login cannot be compared: {error}"
    else:
        login.compare_at = time.monotonic() + COMPARE_AGAIN_SECONDS
    if login.obstacle:
        raise ConnectAgain(CR_SERVER_LOST, login.obstacle)
    return login


def forget_login(client: Client) -> None:
    """Compare at the next connect: this server may not be what it was."""
    _logins.pop(client.login_key(), None)


def succeed(answers: Sequence[Answer]) -> None:
    """Raise the first error among the answers to a pipeline."""
    for answer in answers:
        if isinstance(answer, MySQLError):
            raise answer


# --- Comparing ---------------------------------------------------------------------------------

# The last two leave FOUND_ROWS() and ROW_COUNT() as they are on a fresh connection.
_LOOK = tuple(
    (COM_QUERY, sql) for sql in (b"SHOW SESSION VARIABLES", b"SELECT DATABASE()", b"DO 0")
)

_SHOW_MAX_CHARACTERS = 1024
"""Characters after which MySQL's SHOW cuts a value off; MariaDB's does after twice as many."""

_NO_EFFECT = frozenset({"max_user_connections"})
"""Session variables that show the limit which the server applied at the login. They cannot be set,
and no statement depends on them. (MariaDB no longer counts a connection after a reset; the pool has
a bound of its own.)"""

_SETS_VARIABLES = re.compile(
    r"SET\s+(?!DEFAULT|GLOBAL|PASSWORD|PERSIST|RESOURCE|STATEMENT|TRANSACTION)", re.I
)


class _Session:
    """The state of a session, from the answers to :data:`_LOOK`."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        succeed(answers)
        shown, database, _ = answers
        assert not isinstance(shown, MySQLError)
        self.variables = {_text(name): _text(value) for name, value in shown}
        self.database = database

    def other(self, session: _Session) -> set[str]:
        """Returns the names of the variables whose values differ in another state."""
        return {name for name, _ in self.variables.items() ^ session.variables.items()}


def _compare(client: Client) -> tuple[bytes, str | None]:
    """Returns the statement that sets what a reset does not restore, and the obstacle, if that
    statement is not enough.

    :raises MySQLError: the sessions could not be compared.
    """
    reset = client.reset_commands()
    # Two resets: variables that differ after the second one, too (clocks, seeds, counters), differ
    # between any two looks, and are none of a login's.
    answers = client.pipeline([*_LOOK, *reset, *_LOOK, *reset, *_LOOK])
    first = answers[len(_LOOK)]
    if isinstance(first, MySQLError) and is_unknown_command(first):
        return b"", "the server cannot reset a session (COM_RESET_CONNECTION)"
    succeed(answers)
    step = len(_LOOK) + len(reset)
    fresh, after, again = (_Session(answers[n : n + len(_LOOK)]) for n in (0, step, 2 * step))
    if not _sets_variables_only(fresh.variables.get("init_connect") or ""):
        return b"", "init_connect may do more than set session variables"
    if fresh.database != after.database:
        return b"", "a reset does not go back to the database"
    if fresh.variables.keys() != after.variables.keys():
        return b"", "a login limits what SHOW SESSION VARIABLES shows (sql_select_limit?)"
    lost = sorted(fresh.other(after) - after.other(again) - _NO_EFFECT)
    if not lost:
        return b"", None

    values = client.pipeline([(COM_QUERY, f"SELECT @@SESSION.{name}".encode()) for name in lost])
    # An error: the variable is a global one, and was changed at this moment.
    kinds = {
        name: rows[0][0]
        for name, rows in zip(lost, values, strict=True)
        if not isinstance(rows, MySQLError)
    }
    settings = (
        f"SESSION {name} = {_literal(fresh.variables.get(name), kind)}"
        for name, kind in kinds.items()
    )
    restore = f"SET {', '.join(settings)}".encode() if kinds else b""
    reset = client.reset_commands(restore)
    answers = client.pipeline([*reset, *_LOOK])
    still = fresh.other(_Session(answers[len(reset) :])) & kinds.keys()
    if any(isinstance(answer, MySQLError) for answer in answers):
        still = set(kinds)  # SET sets all of them or none
    too_long = {
        name for name in kinds if len(fresh.variables.get(name) or "") >= _SHOW_MAX_CHARACTERS
    }
    if still or too_long:
        return b"", f"a reset does not bring back {_enumerate(sorted(still | too_long))}"
    return restore, None


def _sets_variables_only(init_connect: str) -> bool:
    """Whether a comparison of session variables shows everything that init_connect does. It does
    not show user variables, locks and temporary tables."""
    if len(init_connect) >= _SHOW_MAX_CHARACTERS:
        return False
    # The values are expressions, and may have side effects as those in a SELECT.
    return all(
        _SETS_VARIABLES.match(statement) and not classify("SELECT" + statement[3:]).touches
        for statement in map(str.strip, init_connect.split(";"))
        if statement
    )


def _literal(value: str | None, kind: object) -> str:
    """Returns a value from SHOW as SET takes it. Strings mean the same in any sql_mode: under
    NO_BACKSLASH_ESCAPES a backslash escapes nothing.

    :param kind: the variable's value from a SELECT, for its type.
    """
    if value is None:
        return "NULL"
    if kind is not None and not isinstance(kind, (str, bytes)):
        return value  # a number; or ON, for 1
    if value.isascii() and value.isprintable() and "'" not in value and "\\" not in value:
        return f"'{value}'"
    return f"_utf8mb4 0x{value.encode().hex()}"


def _text(value: Any) -> Any:
    """Decodes bytes, which the driver returns when ``use_unicode`` is off."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
