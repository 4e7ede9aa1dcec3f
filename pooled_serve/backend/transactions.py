"""How the transaction of a session starts.

Django switches autocommit off; what is sent is BEGIN, right before the first statement. So a
transaction without statements costs nothing, and one with statements a round trip less. If the
first one only reads, BEGIN is sent together with it, and costs none. A write waits until BEGIN has
succeeded: if that fails, as when an operator's KILL QUERY hits it, the server runs what follows,
and would commit it at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymysql.err import MySQLError

from pooled_serve.backend.again import may_run_again, replace_connection

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session
    from pooled_serve.driver.connection import MySQLConnection


def begin(session: Session, conn: MySQLConnection) -> None:
    """See that the next statement of a session that has autocommit off is in a transaction.

    :raises PoolTimeout, PoolClosed, MySQLError: there is no connection, or it failed.
    """
    if conn.transaction_unknown and conn.open:
        conn.ping()  # the answer has the present status of the transaction
        conn.transaction_unknown = False
    if conn.in_transaction():
        return
    if session._touched_session:
        # BEGIN would end a LOCK TABLES, and forbid a SET TRANSACTION.
        conn.autocommit(False)
    elif session._statement.repeatable and conn.has_own_id:
        conn.begin_first = True
        session._begun_by = session._number
    else:
        begin_alone(session, conn)


def begin_alone(session: Session, conn: MySQLConnection) -> None:
    """Send BEGIN; if the connection turns out to be dead, on a fresh one.

    :raises PoolTimeout, PoolClosed, MySQLError: see :func:`begin`.
    """
    conn.begin_first = False
    try:
        conn.begin()
    except MySQLError as error:
        if not may_run_again(session, error, harmless=True):
            raise
        replace_connection(session, error, ran=False)
        (session._conn or session._lease()).begin()
