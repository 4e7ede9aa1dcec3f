"""What a statement may leave behind in the session, and what it may ask of the one before.

A small table, and one rule: what is not known to be plain counts as touching the session. To be
wrong in that direction costs a reset; in the other it hands one request the state of another.

Looks at the statement as the program wrote it, placeholders and all, so that values never count
and the answer can be cached.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

PLAIN_VERBS = frozenset(
    {
        *("SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "VALUES", "TABLE"),
        *("SHOW", "EXPLAIN", "DESCRIBE", "DESC"),
    }
)
"""Statements that change rows or none, but not the session, unless a rule below says so."""

TRANSACTION_VERBS = frozenset(["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"])
"""Statements about transactions, which the server's status flags report by themselves."""

# Strings, quoted names and comments, none of which mean anything here. A backslash inside a
# string is not an escape under NO_BACKSLASH_ESCAPES; statements with one are not looked at.
_OPAQUE = re.compile(
    r"'(?:[^']|'')*'"
    r'|"(?:[^"]|"")*"'
    r"|`(?:[^`]|``)*`"
    r"|/\*(?!M?!).*?\*/"
    r"|--(?=[\s]|$)[^\n]*"
    r"|\#[^\n]*",
    re.DOTALL,
)
_VERB = re.compile(r"[\s(]*([A-Za-z]+)")
_START = re.compile(r"\s*START\s+TRANSACTION\b", re.I)
_COMPOUND = re.compile(r"\s*BEGIN\s+NOT\b", re.I)
_NAMED = tuple(
    (re.compile(rf"\s*{pattern}\b", re.I), reason)
    for pattern, reason in (
        (r"SET\s+(?:DEFAULT\s+)?ROLE", "role"),
        (r"SET", "variable"),
        (r"USE", "database"),
        (r"LOCK", "table lock"),
        (r"PREPARE", "prepared statement"),
        (r"CALL", "procedure"),
        (r"CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY", "temporary table"),
    )
)
"""Names for the most common reasons; every other statement is "unknown"."""

_TOUCHES = (
    (re.compile(r"(?<!@)@(?!@)|:="), "variable"),  # to read a @@variable does nothing
    (re.compile(r"\b(?:GET_LOCK|RELEASE_LOCK|RELEASE_ALL_LOCKS)\b", re.I), "lock"),
    (re.compile(r"\bLAST_INSERT_ID\s*\(\s*[^\s)]", re.I), "LAST_INSERT_ID(expr)"),
    (re.compile(r"\bSQL_CALC_FOUND_ROWS\b", re.I), "SQL_CALC_FOUND_ROWS"),
)
_ASKS = re.compile(
    r"\bLAST_INSERT_ID\s*\(\s*\)"
    r"|\b(?:FOUND_ROWS|ROW_COUNT)\s*\("
    r"|\bLASTVAL\s*\(|\bPREVIOUS\s+VALUE\s+FOR\b"
    r"|\bSHOW\s+(?:COUNT\s*\(\s*\*\s*\)\s*)?(?:WARNINGS|ERRORS)\b"
    r"|@@(?:SESSION\s*\.\s*)?(?:WARNING_COUNT|ERROR_COUNT|LAST_INSERT_ID|IDENTITY)\b",
    re.I,
)


_NEXT = re.compile(r"\b(?:NEXTVAL|SETVAL|NEXT\s+VALUE\s+FOR)\b", re.I)


@dataclass(frozen=True)
class Statement:
    """``touches``: why the session may differ after it, or None. ``asks``: what it reads of the
    statement before it, or None. ``inserts``: it may generate a key. ``returning``: and the answer
    does not say which. ``numbers``: it draws a number from a sequence."""

    touches: str | None = None
    asks: str | None = None
    inserts: bool = False
    returning: bool = False
    numbers: bool = False


@functools.lru_cache(maxsize=4096)
def classify(sql: str | bytes) -> Statement:
    """What a statement may leave behind and what it asks."""
    if isinstance(sql, bytes):
        sql = sql.decode("utf-8", "replace")
    if "\\" in sql:
        return Statement(touches="unknown")
    bare = _OPAQUE.sub(" ", sql)
    if re.search(r"['\"`]|/\*|\*/", bare):
        return Statement(touches="unknown")  # an executable comment, or quotes that do not end
    verb_match = _VERB.match(bare)
    verb = verb_match.group(1).upper() if verb_match else ""
    asks = _ASKS.search(bare)
    inserts = verb in ("INSERT", "REPLACE")
    return Statement(
        _touches(verb, bare),
        " ".join(asks.group().split()).upper() if asks else None,
        inserts,
        inserts and "RETURNING" in bare.upper(),
        bool(_NEXT.search(bare)),
    )


def _touches(verb: str, bare: str) -> str | None:
    if ";" in bare.rstrip().rstrip(";"):
        return "several statements"
    if verb in TRANSACTION_VERBS and not _COMPOUND.match(bare):
        return None
    if verb == "START" and _START.match(bare):
        return None
    if verb in PLAIN_VERBS:
        return next((reason for pattern, reason in _TOUCHES if pattern.search(bare)), None)
    return next((reason for pattern, reason in _NAMED if pattern.match(bare)), "unknown")
