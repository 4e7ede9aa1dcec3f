"""Questions about the statement before, whose answer a pooled connection may have from a stranger.

The server remembers some things for longer than a statement. Found with MariaDB 10.11 and MySQL
9.7: LAST_INSERT_ID() is there until the next generated key, FOUND_ROWS() until the next rows, and
on MariaDB the warnings until the next statement that uses a table. ROW_COUNT() is always about the
statement before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """``lasts``: an answer from before may be wanted too. ``forget``: what makes the answer that
    of a fresh connection, inside transactions and between LOCK TABLES too; None if nothing does."""

    lasts: bool
    forget: str | None


_INSERTED = re.compile(r"LAST_INSERT_ID|\bIDENTITY\b|VARIABLES\b", re.I)
_FOUND = re.compile("FOUND_ROWS", re.I)
_SEQUENCE = re.compile(r"LASTVAL|PREVIOUS\b.*?\bVALUE\b|CURRVAL", re.I | re.S)
_WARNED = re.compile("WARNING|ERROR|DIAGNOSTICS", re.I)

FORGET_KEY = "SET last_insert_id = 0"
_KEY = Question(lasts=True, forget=FORGET_KEY)
_NUMBER = Question(lasts=True, forget=None)
_ROWS = Question(lasts=True, forget="SELECT 1")
_WARNINGS = Question(lasts=False, forget="SELECT 1 FROM information_schema.schemata LIMIT 1")

MAY_INSERT = frozenset({"procedure", "prepared statement", "several statements", "unknown"})
"""Reasons of the classifier's behind which keys may have been generated."""

AFTER_RESET = ("SELECT 1", "DO 0")
"""To be run after a reset: MySQL's leaves FOUND_ROWS() as it was. A fresh connection of Django's
has selected one row, and has run a SET after it."""


def unanswerable(
    sql: str | bytes, last: Any, has_key: bool, used_sequence: bool, got_rows: bool
) -> Iterator[Question]:
    """What a statement asks, and the session has no statement of its own for.

    :param last: PyMySQL's result of the statement before; None if that failed.
    :param has_key: the session may have generated a key.
    :param used_sequence: it has drawn a number from a sequence.
    :param got_rows: it has got rows.
    """
    text = sql if isinstance(sql, str) else bytes(sql).decode("utf-8", "replace")
    if _WARNED.search(text) and last is not None and not last.warning_count:
        yield _WARNINGS
    if _INSERTED.search(text) and not has_key:
        yield _KEY
    if _SEQUENCE.search(text) and not used_sequence:
        yield _NUMBER
    if _FOUND.search(text) and not got_rows:
        yield _ROWS
