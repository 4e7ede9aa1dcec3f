"""A connection whose session can be made like a fresh one, in one round trip.

COM_RESET_CONNECTION ends the transaction and forgets variables, temporary tables, locks and
prepared statements. It does not go back to the first database, nor to the first role; and it
returns to the server's own defaults for everything else, not to what the client asked for when it
connected: character set, sql_mode, isolation level, init_command. So all of that is run again.
Found with MariaDB 10.11 and MySQL 9.7.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
from pymysql.connections import Connection
from pymysql.constants.COMMAND import COM_INIT_DB, COM_QUERY
from pymysql.constants.SERVER_STATUS import SERVER_STATUS_AUTOCOMMIT, SERVER_STATUS_IN_TRANS
from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver.error_codes import CR_COMMANDS_OUT_OF_SYNC, CR_SERVER_LOST
from pooled_serve.driver.login import UNKNOWN, Answer, Command, Login, learn_login, succeed
from pooled_serve.driver.questions import FORGET_KEY

log = logging.getLogger("gunicorn.error")

COM_RESET_CONNECTION = 0x1F  # unknown to PyMySQL

RESET_TIMEOUT_SECONDS = 5.0
"""Seconds that the server may take to answer."""


class ResettableConnection(Connection):  # type: ignore[misc]  # PyMySQL has no types
    """A PyMySQL connection that knows how it was set up, and can go back there."""

    _sock: Any
    _result: Any

    transaction_unknown = False  # whether one is open: the status flags may not say so
    stale_key = False  # LAST_INSERT_ID() may be that of an earlier lease
    forget_key_first = False  # do so before the next statement
    dirty_reason: str | None = None
    """Why the state of the session may not be the one of a fresh connection; None if it is."""
    _setup: list[bytes] | None = None  # statements run so far to set it up; None once it is
    _status_at_rest = SERVER_STATUS_AUTOCOMMIT  # status bits of a connection at rest
    _replay: tuple[bytes, ...] | None = ()  # statements to run after a reset; None: impossible
    # The client's charset and collation, and Python's name of the encoding.
    _charset_names: tuple[str, str | None, str] | None = None
    _role: str | None = None  # as SET ROLE takes it; None where there are no roles
    _identity: tuple[Any, ...] = ()  # of the server, and what it does at a login
    _login: Login | None = None
    _logged_obstacles: set[tuple[str, str]] = set()  # noqa: RUF012 - shared, per process

    # --- Fresh ---------------------------------------------------------------------------------

    def _apply_autocommit(self, on: bool) -> None:
        """Have it as it was asked for. PyMySQL saw no need to say so if the server said that it is
        on; but that was before init_connect ran."""
        if on != self.get_autocommit():
            self.server_status ^= SERVER_STATUS_AUTOCOMMIT
            if self.autocommit_mode is not None:
                self.autocommit(self.autocommit_mode)

    def set_up(self, *, compare: bool = True) -> None:
        """Setting up is over: what comes now is the users', and is undone after them.

        :param compare: whether it may be used up to find out what a login does.
        :raises ConnectAgain: another connection must be opened, for the reason that
            :func:`pooled_serve.driver.login.learn_login` gives.
        """
        if self._replay is not None:
            # A transaction that the set-up leaves open is no statement that can be run again.
            open_ended = self.server_status & SERVER_STATUS_IN_TRANS
            self._replay = None if open_ended else tuple(self._setup or ())
        self._setup = self.dirty_reason = None
        self._charset_names = (self.charset, self.collation, self.encoding)
        if self._own_obstacle() is None:
            with limit(
                RESET_TIMEOUT_SECONDS, CR_SERVER_LOST, "no answer while logins are compared"
            ):
                self._login = learn_login(self, compare=compare)
            self._mark_clean()

    def login_key(self) -> tuple[Any, ...]:
        """Equal for connections whose logins do the same, as far as this can be known."""
        place = (self.host, self.port, self.unix_socket, self.user, self.server_version)
        asked = (
            self.client_flag,
            self._role,
            self._charset_names,
            self._replay,
            self._status_at_rest,
        )
        return (*place, *self._identity, *asked)

    def _as_role(self, role: str | None) -> str:
        """CURRENT_ROLE() as SET ROLE takes it: MySQL quotes, in one of two ways, and may have
        several; MariaDB does not, and has NULL for none."""
        if role is None or role == "NONE":
            return "NONE"
        if role.startswith(("`", '"')) and "mariadb" not in self.server_version.lower():
            return role  # without ANSI_QUOTES the double quotes are a string's, which will do
        return "`" + role.replace("`", "``") + "`"

    # --- Like fresh ----------------------------------------------------------------------------

    def reset(self) -> None:
        """End what the last user left open, and undo what it set.

        :raises MySQLError: the connection must be closed.
        """
        with limit(RESET_TIMEOUT_SECONDS, CR_SERVER_LOST, "no answer to a reset"):
            if self.dirty_reason is None:
                # First: to switch autocommit on would commit.
                self.rollback()
                self.autocommit(bool(self._status_at_rest & SERVER_STATUS_AUTOCOMMIT))
            else:
                self._reset_session()
        self._mark_clean()

    def _reset_session(self) -> None:
        if obstacle := self._own_obstacle() or (self._login and self._login.obstacle):
            self._log_obstacle(obstacle)
            raise OperationalError(CR_COMMANDS_OUT_OF_SYNC, obstacle)
        succeed(self.pipeline(self.reset_commands(self._login.restore if self._login else b"")))
        self.stale_key = False

    def _own_obstacle(self) -> str | None:
        """Why what the client does at a login cannot be done again."""
        if self._replay is None:
            return "the set-up cannot be run again"
        if not self.db:
            # Whatever was touched, a USE may have been there too.
            return "there is no database to return to"
        return None

    def _log_obstacle(self, obstacle: str) -> None:
        if obstacle != UNKNOWN and (self.server, obstacle) not in self._logged_obstacles:
            self._logged_obstacles.add((self.server, obstacle))
            log.warning(
                "%s at %s: connections whose session was touched are closed, not reset: %s\n"
                "→ each costs a connect; what logins are to set can stand in DATABASES, too: "
                "OPTIONS['init_command']",
                self.engine,
                self.server,
                obstacle,
            )

    def reset_commands(self, restore: bytes = b"") -> list[Command]:
        """The commands that make a session like a fresh one: COM_RESET_CONNECTION, and again all
        that set the connection up.

        :param restore: what brings back the rest; see :mod:`pooled_serve.driver.login`.
        """
        if self._charset_names is not None:
            # Of these, the ones of the client: set_character_set() changes both sides.
            self.charset, self.collation, self.encoding = self._charset_names
        names = f"SET NAMES {self.charset}"
        if self.collation:
            names += f" COLLATE {self.collation}"
        database = self.db if isinstance(self.db, bytes) else self.db.encode(self.encoding)
        autocommit = int(bool(self._status_at_rest & SERVER_STATUS_AUTOCOMMIT))
        role = [] if self._role is None else [f"SET ROLE {self._role}".encode(self.encoding)]
        # In the order of connecting: the set-up may have gone to another database.
        statements = [names.encode(), *(self._replay or ()), *([restore] if restore else ())]
        return [
            (COM_RESET_CONNECTION, b""),
            *((COM_QUERY, sql) for sql in role),
            (COM_INIT_DB, database),
            *((COM_QUERY, sql) for sql in statements),
            (COM_QUERY, b"SET autocommit=%d" % autocommit),
        ]

    def pipeline(self, commands: Sequence[Command]) -> list[Answer]:
        """Send all commands at once, and read all answers: rows, none, or an error.

        :raises MySQLError: the connection is lost.
        """
        self._write_bytes(b"".join(_packet(command, text) for command, text in commands))
        return [self._answer() for _ in commands]

    def _query_without_key(self, sql: bytes, unbuffered: bool) -> Any:
        """Run a statement right behind one that forgets LAST_INSERT_ID(). In one write: with two,
        the server would answer in between."""
        self._write_bytes(_packet(COM_QUERY, FORGET_KEY.encode()) + _packet(COM_QUERY, sql))
        try:
            succeed([self._answer()])
        except MySQLError:
            self._force_close()  # the other answer is still to come
            raise
        self._next_seq_id = 1
        self._affected_rows = self._read_query_result(unbuffered)
        return self._affected_rows

    def _answer(self) -> Answer:
        self._next_seq_id = 1
        try:
            self._read_query_result()
            rows: Answer = self._result.rows or ()
            while self._result.has_next:  # several statements in one
                self._read_query_result()
        except BaseException as error:
            self._failed(error)
            if self._sock is None or not isinstance(error, MySQLError):
                raise
            return error
        return rows

    def _mark_clean(self) -> None:
        """It is as good as new, for this side too."""
        self.transaction_unknown, self.dirty_reason = False, None
        self._result, self._affected_rows = None, 0

    @property
    def engine(self) -> str:
        """ "MariaDB 10.11.19", "MySQL 9.7.0"."""
        version = self.server_version.removeprefix("5.5.5-")  # MariaDB, to be let in by old clients
        kind = "MariaDB" if "mariadb" in version.lower() else "MySQL"
        return f"{kind} {version.partition('-')[0]}"

    @property
    def server(self) -> str:
        """host:port or the path of a socket. What stands before an "@" in a host is a password
        in the wrong place, and left out."""
        host = self.host.rpartition("@")[2]
        return self.unix_socket or (f"[{host}]" if ":" in host else host) + f":{self.port}"

    def _failed(self, error: BaseException) -> None:
        """Called with each error of a command; closes what cannot be used any more."""
        raise NotImplementedError


def _packet(command: int, text: bytes) -> bytes:
    return struct.pack("<iB", len(text) + 1, command) + text


@contextlib.contextmanager
def limit(seconds: float, code: int, message: str) -> Iterator[None]:
    """Raise OperationalError in the body after that many seconds."""
    with gevent.Timeout(seconds, OperationalError(code, message)):
        yield
