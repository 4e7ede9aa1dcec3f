"""What a statement may leave behind in the session, and what it may ask about the one before.

A few tables, and one rule: a statement that is not known to be plain counts as touching the
session. A mistake in that direction costs a reset; one in the other direction hands the state of
one request to another. Where a server might read the text in another way than this lexer, the
statement is not plain.

The statement is classified as the program wrote it, with placeholders: values have no influence,
and the result can be cached. The tables were found with MariaDB 10.11 and MySQL 9.7; their tests
compare sessions before and after.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pooled_serve.driver.reads import is_read

Rules = tuple[tuple[re.Pattern[str], str, str], ...]


def _rules(*rules: tuple[str, ...]) -> Rules:
    """Returns patterns, each with a substring of all its matches, and what they mean. Searching for
    the substring first makes statements of a megabyte cheap."""
    return tuple((re.compile(rule[0], re.ASCII), rule[1], rule[-1]) for rule in rules)


def _found(rules: Rules, text: str) -> Iterator[tuple[re.Match[str], str]]:
    for pattern, piece, meaning in rules:
        if piece in text and (match := pattern.search(text)):
            yield match, meaning


PLAIN_VERBS = frozenset(
    {
        *("SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "VALUES", "TABLE"),
        *("SHOW", "EXPLAIN", "DESCRIBE", "DESC"),
    }
)
"""Statements that at most change rows; not the session, unless a rule below says so."""

_WRITING_VERBS = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "WITH"})

_TRANSACTION = re.compile(
    r"BEGIN(?: WORK)?|START TRANSACTION[A-Z ,]*"
    r"|(?:COMMIT|ROLLBACK)(?: WORK)?(?: AND (?:NO )?CHAIN)?(?: (?:NO )?RELEASE)?"
    r"|ROLLBACK (?:WORK )?TO (?:SAVEPOINT )?\w*|(?:RELEASE )?SAVEPOINT \w*"
)
"""Statements about transactions, which the server's status flags report by themselves."""
_VERB = re.compile(r"[ (]*(\w*)", re.ASCII)

# --- Lexing ------------------------------------------------------------------------------------

# Whether a backslash escapes depends on sql_mode. A control character may start a comment after
# "--", and end another one.
_DOUBTFUL = re.compile(r"[\\\x00-\x08\x0e-\x1f\x7f]")
_LEXEME = re.compile(
    # Quoted names call native functions, too, and "..." is a name under ANSI_QUOTES.
    r"`(\w+)`(?!`)"
    r'|"(\w+)"(?!")'
    r"|([`])[^`]*+(?:``[^`]*+)*+`"
    r'|(["])[^"]*+(?:""[^"]*+)*+"'
    # Strings and comments, which are dropped.
    r"|'[^']*+(?:''[^']*+)*+'"
    r"|/\*(?![!+]|M!)(?>.*?\*/)"
    r"|/\*\+[^'\"`*/]*+\*/"  # a hint with a quoted name may go on after a "*/"
    r"|--(?:[ \t\r\v\f][^\n]*+|(?=\n)|\Z)"  # other white space depends on the charset
    r"|\#[^\n]*+"
    # Quotes and comments that do not end, executable comments, a "--" that may be two minuses.
    r"|(['\"`]|/\*|--).*+",
    re.DOTALL | re.ASCII,
)
_REPLACEMENT = r" \1\2\3\4 \5\5 "  # one quote stands for a name with other characters
# A "$" may start a string in MySQL, which also compares the names of variables without accents.
_UNSURE = re.compile(
    r"""''|""|``|/\*|\*/|--|\$"""
    r"""|["`] ?\((?<!INTO ["`] \()|["`] ?\. ?\w+ ?\(|@@ ?(?:\w+ ?\. ?)?["`]""",
    re.ASCII,
)

# --- What it leaves behind ---------------------------------------------------------------------
#
# All patterns below are for text in upper case with single spaces.

_NAMED = tuple(
    (re.compile(rf"(?:{pattern})\b"), reason)
    for pattern, reason in (
        (r"SET (?:DEFAULT )?ROLE", "role"),
        (r"SET", "variable"),
        (r"GET (?:CURRENT |STACKED )?DIAGNOSTICS", "variable"),
        (r"USE", "database"),
        (r"LOCK", "table lock"),
        (r"PREPARE|EXECUTE", "prepared statement"),
        (r"CALL", "procedure"),
        (r"CREATE (?:OR REPLACE )?TEMPORARY", "temporary table"),
    )
)
"""Names for the most common reasons; every other statement is "unknown"."""

_SEQUENCE = _rules(
    (r"\bNEXT VALUE FOR\b", "NEXT VALUE FOR", "sequence"),
    (r"\b(?:NEXTVAL|SETVAL)\b", "TVAL", "sequence"),
)
_TOUCHES = _SEQUENCE + _rules(
    (r"(?<!@)@(?!@)|@@@", "@", "variable"),  # to read a @@variable does nothing
    (r":=", ":=", "variable"),
    (r"\b(?:GET_LOCK|RELEASE_LOCK|RELEASE_ALL_LOCKS)\b", "_LOCK", "lock"),
    (r"\bSERVICE_\w+_LOCKS ?\(", "SERVICE_", "lock"),
    (r"\bVERSION_TOKENS_\w+ ?\(", "VERSION_TOKENS_", "lock"),
    (r"\bLAST_INSERT_ID ?\( ?[^ )]", "LAST_INSERT_ID", "LAST_INSERT_ID(expr)"),
    (r"\bSQL_CALC_FOUND_ROWS\b", "SQL_CALC_FOUND_ROWS", "SQL_CALC_FOUND_ROWS"),
)
# A stored function; a table only after INTO.
_QUALIFIED_CALL = re.compile(r"\. ?\w+ ?\(", re.ASCII)
_INTO = re.compile(r"\bINTO \w+ ?$", re.ASCII)

_KEEPS = _rules(
    (r"\bCONNECTION_ID ?\(", "CONNECTION_ID", "connection id"),
    (r"\bPS_(?:CURRENT_)?THREAD_ID ?\(", "THREAD_ID", "connection id"),
    (r"\b(?:PSEUDO|TRX_MYSQL)_THREAD_ID\b", "_THREAD_ID", "connection id"),
    (r"\bPROCESSLIST\b", "PROCESSLIST", "connection id"),
)
"""Functions and tables that tell the id of a connection. The program may KILL that id later, and
must not meet another request."""

LASTING = frozenset(
    {"profiling", "resource group", "optimizer trace", "performance schema", "XA transaction"}
)
"""Reasons that a reset does not undo, on MariaDB or on MySQL: the connection is closed instead.
(MariaDB keeps the metadata locks of an XA PREPARE for ever after a reset.)"""

# Searched for in strings as well: a statement may be prepared from one.
_LASTING = _rules(
    (r"\bPROFILING\b", "PROFILING", "profiling"),
    (r"\bRESOURCE\s+GROUP\b", "RESOURCE", "resource group"),
    (r"\bOPTIMIZER_TRACE", "OPTIMIZER_TRACE", "optimizer trace"),
    (r"\bPERFORMANCE_SCHEMA\b", "PERFORMANCE_SCHEMA", "performance schema"),
    (r"\bXA\b", "XA", "XA transaction"),
)

REASONS = frozenset(
    {
        *(reason for _, reason in _NAMED),
        *(reason for _, _, reason in (*_TOUCHES, *_KEEPS)),
        *LASTING,
        *("several statements", "unknown"),
    }
)
"""Every value of :attr:`Statement.touches` and :attr:`Statement.keeps`."""

# --- What it asks ------------------------------------------------------------------------------

_ASKS = _rules(
    (r"\bLAST_INSERT_ID ?\( ?\)|@@ ?(?:\w+ ?\. ?)?LAST_INSERT_ID\b", "LAST_INSERT_ID"),
    (r"@@ ?(?:\w+ ?\. ?)?IDENTITY\b", "IDENTITY"),
    (r"\bLASTVAL ?\(", "LASTVAL"),
    (r"\bPREVIOUS VALUE FOR\b", "PREVIOUS VALUE FOR"),
    (r"\. ?CURRVAL\b", "CURRVAL"),
    (r"\bFOUND_ROWS ?\(", "FOUND_ROWS"),
    (r"\bROW_COUNT ?\(", "ROW_COUNT"),
    (r"\bSHOW (?:COUNT ?\( ?\* ?\) ?)?(?:WARNINGS|ERRORS)\b", "SHOW "),
    (r"\bGET (?:CURRENT |STACKED )?DIAGNOSTICS\b", "DIAGNOSTICS"),
    (r"@@ ?(?:\w+ ?\. ?)?(?:WARNING|ERROR)_COUNT\b", "_COUNT"),
    (r"@@ ?(?:\w+ ?\. ?)?LAST_GTID\b", "LAST_GTID"),
    (r"@@ ?(?:\w+ ?\. ?)?RAND_SEED[12]\b", "RAND_SEED"),
    # These show what the session has done since it began.
    (r"\bSHOW (?:SESSION |LOCAL )?(?:STATUS|VARIABLES)\b|\bSHOW PROFILES?\b", "SHOW "),
    (r"\bSESSION_(?:STATUS|VARIABLES)\b", "SESSION_"),
)
# For text that the lexer cannot split, or that is prepared from a string.
_MAY_ASK = _rules(
    (r"\b(?:LAST_INSERT_ID|LAST_GTID)\b", "LAST_"),
    (r"\b(?:ROW|WARNING|ERROR)_COUNT\b", "_COUNT"),
    (r"\bFOUND_ROWS\b", "FOUND_ROWS"),
    (r"\b(?:LASTVAL|CURRVAL)\b", "VAL"),
    (r"\bPREVIOUS\W+(?:\w+\W+){0,3}VALUE\b", "PREVIOUS"),
    (r"\bGET\W+(?:\w+\W+){0,3}DIAGNOSTICS\b", "DIAGNOSTICS"),
    (r"\bSHOW\W+(?:\w+\W+){0,3}(?:WARNINGS|ERRORS)\b", "SHOW"),
    (r"@@[\s\S]{0,50}?\bIDENTITY\b", "IDENTITY"),
    (r"\bSESSION_(?:STATUS|VARIABLES)\b", "SESSION_"),
    (r"^[^A-Z]*SHOW\W+(?:\w+\W+){0,3}(?:STATUS|VARIABLES|PROFILES?)\b", "SHOW"),
)
_SHOWS_SOME = re.compile(
    r"\s*SHOW\s+(?:SESSION\s+|LOCAL\s+)?(STATUS|VARIABLES)\s+"
    r"(?:WHERE\s+`?VARIABLE_NAME`?\s*(?:=\s*|IN\s*\(\s*|LIKE\s+)|LIKE\s+)"
    r"('\w+%{0,2}'(?:\s*,\s*'\w+%{0,2}')*)\s*\)?\s*;?\s*",
    re.I | re.ASCII,
)
_TELLING = (
    *("last_insert_id", "identity", "warning_count", "error_count", "last_gtid"),
    *("rand_seed1", "rand_seed2", "pseudo_thread_id"),
)
_OF_THE_SERVER = re.compile(
    r"(?:threads_|innodb_|wsrep_|ssl_|max_used_|aborted_|uptime)\w*%*", re.I
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What is known about a statement.

    ``touches``: why the session may differ afterwards, one of :data:`REASONS`; None if it does not.
    The reasons in :data:`LASTING` survive a reset.

    ``asks``: the part of it that asks about earlier statements of the session; None if none does.

    ``keeps``: why the session must keep the connection afterwards, though the statement touches
    nothing; None if it need not.

    ``inserts``: it may generate a key. ``returning``: and the answer does not tell which.

    ``numbers``: it draws a number from a sequence.

    ``repeatable``: it only reads, so that running it twice does no harm.
    """

    touches: str | None = None
    asks: str | None = None
    keeps: str | None = None
    inserts: bool = False
    returning: bool = False
    numbers: bool = False
    repeatable: bool = False


_MAX_STATEMENTS, _MAX_STATEMENT_BYTES = 1024, 2500


class _StatementCache(dict[Any, Statement]):
    """The statements classified lately. Cleared when it is full, at 3 MB at most."""

    def __missing__(self, sql: str | bytes) -> Statement:
        statement = _classify(sql)
        if type(sql) in (str, bytes) and sys.getsizeof(sql) <= _MAX_STATEMENT_BYTES:
            if len(self) >= _MAX_STATEMENTS:
                self.clear()
            self[sql] = statement
        return statement


_cache = _StatementCache()


def classify(sql: Any) -> Statement:
    """Returns what a statement may leave behind, and what it asks.

    :param sql: text or bytes of any kind; anything else counts as touching the session.
    """
    try:
        return _cache[sql]
    except (TypeError, ValueError):  # a bytearray or memoryview, which has no hash
        return _classify(sql)


def split(sql: str) -> list[str]:
    """Returns the statements of a text in upper case, without strings and comments; none if servers
    may not agree on where they end."""
    bare = " ".join(_LEXEME.sub(_REPLACEMENT, sql).split()).upper()
    if not bare.isascii() or _DOUBTFUL.search(sql) or _UNSURE.search(bare):
        return []
    return [piece.strip() for piece in bare.split(";") if piece.strip()]


def _classify(sql: Any) -> Statement:
    if isinstance(sql, (bytearray, memoryview)):
        sql = bytes(sql)
    sure = True
    if isinstance(sql, bytes):
        sure = sql.isascii()  # the meaning of other bytes depends on the character set
        sql = sql.decode("utf-8", "replace")
    elif not isinstance(sql, str):
        return Statement("unknown")
    text = _LEXEME.sub(_REPLACEMENT, sql)
    sure = sure and text.isascii()  # before split(), which takes NBSP for white space
    bare = " ".join(text.split()).upper().rstrip("; ")
    if not sure or _DOUBTFUL.search(sql) or _UNSURE.search(bare):
        return _opaque("unknown", bare, sql)
    if ";" in bare:
        return Statement(_lasting(bare, sql) or "several statements", _asks(_ASKS, bare))
    if _TRANSACTION.fullmatch(bare):
        return Statement()
    match = _VERB.match(bare)
    verb = match.group(1) if match else ""
    touches = _touches(verb, bare)
    if touches == "prepared statement":
        return _opaque(touches, bare, sql)
    if touches is not None:
        touches = _lasting(bare, sql) or touches
    asks = None if _is_harmless(sql) else _asks(_ASKS, bare)
    keeps = next((reason for _, reason in _found(_KEEPS, bare)), None)
    inserts = verb in ("INSERT", "REPLACE")
    return Statement(
        touches,
        asks,
        keeps,
        inserts,
        inserts and "RETURNING" in bare,
        any(_found(_SEQUENCE, bare)),
        touches is None and asks is None and keeps is None and is_read(verb, bare, sql),
    )


def _opaque(touches: str, bare: str, sql: str) -> Statement:
    """Returns the result for a statement that cannot be understood, or that runs another one."""
    asks = _asks(_ASKS, bare) or _asks(_MAY_ASK, _capitals(sql))
    return Statement(_lasting(bare, sql) or touches, asks)


def _touches(verb: str, bare: str) -> str | None:
    if verb in _WRITING_VERBS and "PERFORMANCE_SCHEMA" in bare:
        return "performance schema"
    if verb not in PLAIN_VERBS:
        return next((reason for pattern, reason in _NAMED if pattern.match(bare)), "unknown")
    for _, reason in _found(_TOUCHES, bare):
        return reason
    for call in _QUALIFIED_CALL.finditer(bare):
        if not _INTO.search(bare, max(0, call.start() - 99), call.start()):
            return "procedure"
    return None


def _asks(rules: Rules, text: str) -> str | None:
    for match, _ in _found(rules, text):
        return " ".join(match.group().split())[:99]
    return None


def _capitals(text: str) -> str:
    """Returns the text in upper case and without accents: to MySQL, `prófiling` names the variable,
    too."""
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text.replace("ß", "s"))
        text = letters.encode("ascii", "ignore").decode()  # at the speed of C
    return text.upper()


def _lasting(*texts: str) -> str | None:
    for text in texts:
        for _, reason in _found(_LASTING, _capitals(text)):
            return reason
    return None


def _is_harmless(sql: str) -> bool:
    """Whether it shows certain variables only, as health checks do, and none of them tells about
    earlier statements."""
    match = _SHOWS_SOME.fullmatch(sql)
    if match is None:
        return False
    names = re.findall(r"'(.+?)'", match.group(2))
    if match.group(1).upper() == "STATUS":
        return all(map(_OF_THE_SERVER.fullmatch, names))
    likes = [re.compile(name.replace("_", ".").replace("%", ".*"), re.I) for name in names]
    return not any(like.fullmatch(name) for like in likes for name in _TELLING)
