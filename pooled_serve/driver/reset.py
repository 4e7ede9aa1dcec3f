"""A connection whose session can be made like a fresh one, in one round trip.

COM_RESET_CONNECTION ends the transaction and drops variables, temporary tables, locks and prepared
statements. But it goes back neither to the first database nor to the first role; and character set,
sql_mode, isolation level and the like become the server's defaults, not what the client asked for
when it connected. So the set-up is replayed after it: the statements that connection.py has
recorded (init_command among them), and one that sets what login.py has found a login to set. What a
reset does was found out with MariaDB 10.11 and MySQL 9.7.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pymysql.constants.COMMAND import COM_INIT_DB, COM_QUERY
from pymysql.constants.SERVER_STATUS import SERVER_STATUS_AUTOCOMMIT, SERVER_STATUS_IN_TRANS
from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver.error_codes import CR_COMMANDS_OUT_OF_SYNC, CR_SERVER_LOST
from pooled_serve.driver.login import UNKNOWN, Command, Login, learn_login, succeed
from pooled_serve.driver.pipeline import PipeliningConnection, limit, packet
from pooled_serve.driver.questions import FORGET_KEY

log = logging.getLogger("gunicorn.error")

COM_RESET_CONNECTION = 0x1F  # unknown to PyMySQL

RESET_TIMEOUT_SECONDS = 5.0
"""Seconds that the server may take to answer."""


class ResettableConnection(PipeliningConnection):
    """A PyMySQL connection that records its set-up, to replay it after a reset."""

    transaction_unknown = False  # one may be open of which the status flags say nothing
    stale_key = False  # LAST_INSERT_ID() may still have the key of an earlier lease
    forget_key_first = False  # the next statement is to be preceded by one that clears that key
    begin_first = False  # the next statement, which only reads, is to be preceded by a BEGIN
    dirty_reason: str | None = None
    """Why the session may differ from that of a fresh connection, as in :attr:`Statement.touches`;
    None if it does not."""
    _setup: list[bytes] | None = None  # statements that have set it up so far; None once it is
    _status_at_rest = SERVER_STATUS_AUTOCOMMIT  # status bits of a connection at rest
    _replay: tuple[bytes, ...] | None = ()  # statements to run after a reset; None: impossible
    # The client's charset and collation, and Python's name of the encoding.
    _charset_names: tuple[str, str | None, str] | None = None
    _role: str | None = None  # as SET ROLE takes it; None where there are no roles
    identity: tuple[Any, ...] = ()
    """What identifies the server, and its init_connect; empty if that is not known."""
    _login: Login | None = None
    _logged_obstacles: set[tuple[str, str]] = set()  # noqa: RUF012 - shared, per process

    # --- Fresh ---------------------------------------------------------------------------------

    def _apply_autocommit(self, on: bool) -> None:
        """Switch autocommit to what the client asked for, if it is not.

        PyMySQL compares with the status in the login's answer, which is from before init_connect.

        :param on: whether it is on now, as @@autocommit says.
        """
        if on != self.get_autocommit():
            self.server_status ^= SERVER_STATUS_AUTOCOMMIT
            if self.autocommit_mode is not None:
                self.autocommit(self.autocommit_mode)

    def set_up(self, *, compare: bool = True) -> None:
        """End the set-up: from now on, what a statement sets is undone by a reset.

        :param compare: whether the connection may be used up to find out what a login sets.
        :raises ConnectAgain: another connection must be opened, for the reason that
            :func:`pooled_serve.driver.login.learn_login` gives.
        """
        if self._replay is not None:
            # A replay could not open again a transaction that the set-up has left open.
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
        """Equal for connections whose logins set the same, as far as the client can know."""
        place = (self.host, self.port, self.unix_socket, self.user, self.server_version)
        asked = (
            self.client_flag,
            self._role,
            self._charset_names,
            self._replay,
            self._status_at_rest,
        )
        return (*place, *self.identity, *asked)

    def _as_role(self, role: str | None) -> str:
        """Returns CURRENT_ROLE() as SET ROLE takes it. MySQL quotes it, in one of two ways, and may
        list several roles; MariaDB does not quote, and has NULL for no role."""
        if role is None or role == "NONE":
            return "NONE"
        if role.startswith(("`", '"')) and "mariadb" not in self.server_version.lower():
            return role  # without ANSI_QUOTES, "..." is a string, and SET ROLE takes that, too
        return "`" + role.replace("`", "``") + "`"

    # --- Reset ----------------------------------------------------------------------------

    def reset(self) -> None:
        """End what the last user left open, and undo what it set.

        :raises MySQLError: it cannot be reset, and must be closed.
        """
        with limit(RESET_TIMEOUT_SECONDS, CR_SERVER_LOST, "no answer to a reset"):
            if self.dirty_reason is None:
                # The rollback comes first: switching autocommit on would commit.
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
        """Returns why the client's share of a login cannot be replayed; None if it can."""
        if self._replay is None:
            return "the set-up cannot be run again"
        if not self.db:
            # The user may have run a USE, which could not be undone.
            return "there is no database to return to"
        return None

    def _log_obstacle(self, obstacle: str) -> None:
        if obstacle != UNKNOWN and (self.server, obstacle) not in self._logged_obstacles:
            self._logged_obstacles.add((self.server, obstacle))
            log.warning(
                "%s at %s: connections whose session was touched are closed, not reset: %s\n"
                "→ each costs a connect; set in DATABASES what logins are to set: "
                "OPTIONS['init_command']",
                self.engine,
                self.server,
                obstacle,
            )

    def reset_commands(self, restore: bytes = b"") -> list[Command]:
        """Returns the commands that make the session like a fresh one: COM_RESET_CONNECTION, and
        the set-up.

        :param restore: the statement that sets what else a login sets, see
            :mod:`pooled_serve.driver.login`; empty for none.
        """
        if self._charset_names is not None:
            # The client's side, here and now: set_character_set() has changed both sides.
            self.charset, self.collation, self.encoding = self._charset_names
        names = f"SET NAMES {self.charset}"
        if self.collation:
            names += f" COLLATE {self.collation}"
        database = self.db if isinstance(self.db, bytes) else self.db.encode(self.encoding)
        autocommit = int(bool(self._status_at_rest & SERVER_STATUS_AUTOCOMMIT))
        role = [] if self._role is None else [f"SET ROLE {self._role}".encode(self.encoding)]
        # In the order of a connect: the set-up may have changed the database.
        statements = [names.encode(), *(self._replay or ()), *([restore] if restore else ())]
        return [
            (COM_RESET_CONNECTION, b""),
            *((COM_QUERY, sql) for sql in role),
            (COM_INIT_DB, database),
            *((COM_QUERY, sql) for sql in statements),
            (COM_QUERY, b"SET autocommit=%d" % autocommit),
        ]

    def _query_after(self, first: Sequence[str], sql: bytes, unbuffered: bool) -> Any:
        """Run a statement right after others, in one write and so in one round trip.

        :raises MySQLError: one of them has failed. Those behind it have run nevertheless; then the
            connection is closed, unless all answers were read.
        """
        before = [packet(COM_QUERY, text.encode()) for text in first]
        self._write_bytes(b"".join(before) + packet(COM_QUERY, sql))
        answers = [self._answer() for _ in first]
        self._next_seq_id = 1
        try:
            succeed(answers)
        except MySQLError:
            if unbuffered or FORGET_KEY in first:
                self._give_up()  # the answer would be read as that of the next one
            else:
                self._answer()
            raise
        self._affected_rows = self._read_query_result(unbuffered)
        return self._affected_rows

    def _mark_clean(self) -> None:
        """Note that the session is like a fresh one, and drop the last result."""
        self.transaction_unknown, self.dirty_reason = False, None
        self._result, self._affected_rows = None, 0

    @property
    def engine(self) -> str:
        """Name and version of the server, as in "MySQL 9.7.0"."""
        version = self.server_version.removeprefix("5.5.5-")  # MariaDB's, for old replicas
        kind = "MariaDB" if "mariadb" in version.lower() else "MySQL"
        return f"{kind} {version.partition('-')[0]}"
