"""Statements that ask about an earlier one: a session gets the answer that a connection of its own
would give, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymysql.err import InterfaceError, MySQLError, ProgrammingError

from pooled_serve.driver import questions

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session


def prepare_answer(session: Session, sql: str | bytes, asked: str) -> None:
    """See that the answer to a question is of this session, or that of a fresh connection.

    :raises ProgrammingError: it may be about a statement on a connection that was given back.
    """
    # Then "no key" would be a lie as well: the program may just have inserted a row.
    may_forget = session._scope.keep_leases and not session._ran_on_earlier_lease
    conn = session._conn
    if conn is None or not session._ran_statement:
        if not may_forget:
            raise _refusal(session, asked)
        if (conn or session._lease()).reused:
            _make_fresh(session)
        return
    last = None if session._last_was_question else conn._result
    known = session._has_own_key, session._used_sequence, session._got_rows
    for question in questions.unanswerable(sql, last, *known):
        if question.forget is None or (question.lasts and not may_forget):
            if _was_on_earlier_lease(session, question):
                raise _refusal(session, asked)
            raise _never_was(session, asked, question)
        if conn.reused:
            conn.query(question.forget)


def _make_fresh(session: Session) -> None:
    """Reset the connection, or replace it with a fresh one."""
    while (conn := session._conn) is not None and conn.reused:
        try:
            if session._reset == "rollback":
                raise InterfaceError(0, "--pool-reset rollback")  # so take a fresh one
            conn.dirty_reason = conn.dirty_reason or "question"
            conn.reset()
            for sql in questions.AFTER_RESET:
                conn.query(sql)
            conn._result = None
            return
        except MySQLError:
            conn.condemn("reset failed")
            session._release()
            session._lease()


def _was_on_earlier_lease(session: Session, question: questions.Question) -> bool:
    """Whether what it asks about may have been on a connection that was given back."""
    if question is questions.KEY:
        return session._had_key
    if question is questions.NUMBER:
        return session._had_sequence_value
    return session._ran_on_earlier_lease


def _never_was(session: Session, asked: str, question: questions.Question) -> ProgrammingError:
    where = "on this connection", "first, and both inside one transaction.atomic()"
    if not session.get_autocommit():
        where = "in this atomic() block", "in the same block"
    return ProgrammingError(
        f"{asked} asks about an earlier statement, and none has {question.missing} {where[0]}: "
        f"{question.remedy} {where[1]}"
    )


def _refusal(session: Session, asked: str) -> ProgrammingError:
    where, block = "", "one transaction.atomic()"
    if not session.get_autocommit():  # a hint that has been followed would only confuse
        where, block = "outside of this atomic() block, ", "the same transaction.atomic()"
    return ProgrammingError(
        f"{asked} asks about the statement before it, which ran {where}on a connection that is "
        f"back in the pool ({session._scope.rule}): put both inside {block}"
    )
