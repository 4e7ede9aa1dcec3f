"""When a statement whose connection is dead runs on a fresh one instead, or runs again, once.

Only where nothing of the session is lost and nothing can happen twice: the session is untouched,
no transaction is open, and the statement was not sent, or is the BEGIN of a block, or only reads
and got no answer. A write that may have reached the server never runs again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver.abandoned import is_there, knows, was_running
from pooled_serve.driver.error_codes import (
    CLIENT_INTERACTION_TIMEOUT,
    CR_SERVER_GONE_ERROR,
    GONE,
    code_of,
)

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session
    from pooled_serve.driver.connection import MySQLConnection


def replace_if_dead(session: Session) -> None:
    """Before a statement is sent, after a pause in which the server may have closed the connection.

    :raises PoolTimeout, PoolClosed, MySQLError: there is no other connection.
    """
    conn = session._conn
    if conn is not None and not conn.alive() and _is_replaceable(session):
        conn.close()
        error = OperationalError(CR_SERVER_GONE_ERROR, "the server has closed the connection")
        replace_connection(session, error, ran=False)


def may_run_again(session: Session, error: MySQLError, *, harmless: bool) -> bool:
    """Whether the statement under way, which has failed with this error, may run again.

    :param harmless: it may even if the server has run it: it only reads, or is a BEGIN.
    """
    conn = session._conn
    if conn is None or conn.open or not _is_replaceable(session):
        return False
    if _was_not_read(conn, error):
        return True
    # After a read_timeout the statement goes on at the server; a second one would take as long.
    return harmless and code_of(error) in GONE and not conn.timed_out


def replace_connection(session: Session, error: MySQLError, *, ran: bool = True) -> bool:
    """Lease a fresh connection in the place of a dead one. Returns False if the statement must not
    run again after all: the server is up and has ended it, so somebody has sent a KILL.

    :param ran: whether the server may have run the statement.
    :raises PoolTimeout, PoolClosed, MySQLError: there is no other connection.
    """
    dead = session._conn
    assert dead is not None, "nothing is leased"
    lost = dead.closed_for is None
    if lost:
        # The server may have been restarted, and the idle connections may be as dead as this one.
        session._pool.renew()
    session._release()
    fresh = session._lease()
    if (
        ran
        # A TCP reset says that the server had closed its socket when the statement arrived, or
        # closed it before it read the statement. None comes after the KILL of one that runs, and
        # behind some proxies none at all.
        and not (_was_not_read(dead, error) or dead.was_reset)
        # After a restart nobody has ended it; if it still runs, only the network failed.
        and is_there(fresh, dead) is not False
        and not (knows(fresh, dead) and was_running(fresh, dead))
    ):
        return False
    if lost:
        session._pool.retried(error)
    return True


def _is_replaceable(session: Session) -> bool:
    """Whether the session would lose nothing with its connection."""
    conn = session._conn
    return not (
        conn is None
        or session._closed
        or session._depth != 1  # one statement runs while the parameters of another are made
        or session._pinned
        or session._touched_session
        or session._statement.asks  # about an earlier one
        or conn.unread()
        or conn.in_transaction()
    )


def _was_not_read(dead: MySQLConnection, error: MySQLError) -> bool:
    """Whether the server cannot have got the statement, so that even a write may run again."""
    return (
        dead.send_failed
        or code_of(error) == CLIENT_INTERACTION_TIMEOUT  # the session had ended before
    )
