"""Questions about earlier statements, which a pooled connection may answer with another lease's.

The server keeps some answers for longer than one statement. Found with MariaDB 10.11 and MySQL 9.7:
LAST_INSERT_ID() lasts until the next generated key, FOUND_ROWS() until the next rows, and MariaDB's
warnings last until the next statement that uses a table. ROW_COUNT() is always about the previous
statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """``lasts``: the answer of an earlier statement of the same session may be wanted.

    ``forget``: the statement that makes the answer that of a fresh connection, also inside a
    transaction and under LOCK TABLES; None if there is none.

    ``missing``: what no earlier statement has done. ``remedy``: what should come before.
    """

    lasts: bool
    forget: str | None
    missing: str = ""
    remedy: str = ""


_INSERTED = re.compile(r"LAST_INSERT_ID|\bIDENTITY\b|VARIABLES\b", re.I)
_FOUND = re.compile("FOUND_ROWS", re.I)
_SEQUENCE = re.compile(r"LASTVAL|PREVIOUS\b.*?\bVALUE\b|CURRVAL", re.I | re.S)
_WARNED = re.compile("WARNING|ERROR|DIAGNOSTICS", re.I)

FORGET_KEY = "SET last_insert_id = 0"
KEY = Question(True, FORGET_KEY, "generated a key", "run the INSERT")
NUMBER = Question(True, None, "drawn a number from a sequence", "draw it")
_ROWS = Question(True, "SELECT 1", "returned rows", "run the SELECT")
_WARNINGS = Question(lasts=False, forget="SELECT 1 FROM information_schema.schemata LIMIT 1")

MAY_INSERT = frozenset({"procedure", "prepared statement", "several statements", "unknown"})
"""Values of :attr:`Statement.touches` of statements that may generate keys."""

AFTER_RESET = ("SELECT 1", "DO 0")
"""Statements to run after a reset, because MySQL's leaves FOUND_ROWS() as it was. They give the
answers of a fresh connection of Django's, which has selected one row and then run a SET."""


def unanswerable(
    sql: str | bytes, last: Any, has_key: bool, used_sequence: bool, got_rows: bool
) -> Iterator[Question]:
    """Yields the questions in a statement that no earlier statement of this session answers.

    :param last: PyMySQL's result of the previous statement; None if that failed.
    :param has_key: the session may have generated a key.
    :param used_sequence: it may have drawn a number from a sequence.
    :param got_rows: it may have received rows.
    """
    text = sql if isinstance(sql, str) else bytes(sql).decode("utf-8", "replace")
    if _WARNED.search(text) and last is not None and not last.warning_count:
        yield _WARNINGS
    if _INSERTED.search(text) and not has_key:
        yield KEY
    if _SEQUENCE.search(text) and not used_sequence:
        yield NUMBER
    if _FOUND.search(text) and not got_rows:
        yield _ROWS
