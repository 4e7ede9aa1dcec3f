"""What classify() calls plain, as a server sees it: statements made at random, run on MariaDB and
MySQL, must leave the session as it was, and must not see what ran in it before.

The statements are those that do harm, and some that do not, with noise between, in and around
their words. With TORTURE=1 another thousand seeds are tried, for two minutes at most.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.statements import Statement, classify
from support.processes import wait_until
from support.servers import Database, Server
from support.torture import TORTURE

ROUNDS, STATEMENTS = (1000, 150) if TORTURE else (8, 150)
SECONDS = 120

# Words and the rest, so that noise can go between. In touching ones, @v and 'x' are looked at.
TOUCHING = [
    "SELECT GET_LOCK ( 'x' , 0 )",
    "SELECT 1 , GET_LOCK ( 'x' , 0 ) FROM t",
    "SELECT @ v := 5",
    "SELECT @v := 6 , a FROM t",
    "SELECT 7 INTO @v",
    "UPDATE t SET a = ( @v := 8 )",
    "SET @v = 9",
    "SET SESSION lock_wait_timeout = 77",
    "SET lock_wait_timeout = 78",
    "SELECT 1 ; SET @v = 1",
    "WITH w AS ( SELECT 1 ) SELECT GET_LOCK ( 'x' , 0 ) FROM w",
    "( SELECT GET_LOCK ( 'x' , 0 ) )",
    "DO GET_LOCK ( 'x' , 0 )",
    "CREATE TEMPORARY TABLE tmp ( a INT )",
    "PREPARE s FROM 'SELECT 1'",
    "USE information_schema",
    "UPDATE t SET a = LAST_INSERT_ID ( 4711 )",
]
ASKING = [
    "SELECT LAST_INSERT_ID ( )",
    "SELECT a , LAST_INSERT_ID ( ) FROM t",
    "SELECT @@ last_insert_id",
    "SELECT @@ SESSION . last_insert_id",
    "SELECT @@ LOCAL . identity",
    "SELECT @@ warning_count",
    "SELECT ROW_COUNT ( )",
    "SELECT FOUND_ROWS ( )",
    "SHOW WARNINGS",
    "SHOW COUNT( * ) WARNINGS",
    "SHOW ERRORS",
    "SHOW VARIABLES LIKE 'last_insert_id'",
    "SHOW SESSION VARIABLES LIKE 'identit_'",
    "SELECT CONNECTION_ID ( )",
    "SELECT @@ pseudo_thread_id",
    "SHOW SESSION STATUS LIKE 'Bytes_sent'",
    "SELECT 1 UNION SELECT LAST_INSERT_ID ( )",
]
ON_MARIADB = [
    "SELECT LASTVAL ( q )",
    "SELECT LASTVAL ( q ) FROM t",
    "SELECT PREVIOUS VALUE FOR q",
]
PLAIN = [
    "SELECT a , `b c` FROM t WHERE a = 1 AND `b c` = 'x'",
    "SELECT COUNT ( * ) FROM t",
    "INSERT INTO t ( a ) VALUES ( 1 )",
    "INSERT INTO t ( a , `b c` ) SELECT a , 'y' FROM t LIMIT 1",
    "UPDATE t SET a = a + 1 WHERE a < 3",
    "DELETE FROM t WHERE a > 3",
    "SHOW TABLES",
    "TABLE t",
    "SELECT 'a' , \"b\" , 1 - - 1",
    "EXPLAIN SELECT 1",
]
SPACES = [" ", "\n", "\t", "\r", "\v", "\f", "  "]
COMMENTS = [
    *("/**/", "/* ' */", "/* ` */", "/*/ */", "/* -- */", "/* # */", "/*\n*/", "/*+ x */"),
    *("/*+ QB_NAME(`*/`) */", "-- x\n", "--\n", "--\t'\n", "# '\n", "#\n", "-- */\n"),
]
ODD = [
    *("\xa0", "--\xa0", "--\xa0\n", "--\x01", "--\x01\n", "--\x7f\n", "\x00", "-- \x00", "\x1a"),
    *("\u3000", "\u2028", "\x85", "--\x85\n", "--", "/*", "*/", "/*!", "/*!50000 ", "/*M!"),
    *("/*!99999 ", "/*! */", "/*!50000 */", "/* /* */ */", "'", '"', "`", "''", '""', "``"),
    *("\\", "\\'", "'\\'", '"\\"', "$$", "$a$", ";", "#", "-", "@", "@@", "(", ")", ",", "\\N"),
    *("{", "}", ":", "=", "'é'", "é", "'\u8868'", "`\u8868`", "\u8868", "\u82e5", "N'x'"),
    *("_gbk'x'", "x'41'", "0x41", "?", "%s", "%", "/", "*", "AS x", "AS `x y`", ", 1", "FROM t"),
]
HIDES = [
    *("--\xa0'\n, {} -- '", "--\x01'\n, {} -- '", "--\x7f'\n, {} #'", "--'\n, {} -- '"),
    *("/*! ' */, {} -- '", "/*+ QB_NAME(`*/`) */, {} -- `", ", '\\\\', {} -- '", ", '\\', {} #'"),
    *("-- \x00'\n, {} -- '", "#\x00'\n, {} -- '", ", $$ ' $$, {}, $$ ' $$", "/*/ '*/, {} #'"),
    *("--\x85'\n, {} -- '", "/* /* ' */ */, {} #'", ", \"'\", {} -- '", ", `'`, {} -- '"),
]
ACCENTS = str.maketrans(dict(zip("EOAIeoai", "ÉÖÀÏéöàï", strict=True)))
MODES = ["", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "IGNORE_SPACE", "PIPES_AS_CONCAT"]
CHARSETS = ["utf8mb4", "utf8mb4", "latin1", "gbk", "sjis"]

# Clocks.
VOLATILE = {"timestamp", "rand_seed1", "rand_seed2", "statement_id", "gtid_executed"}
# Of the statement itself: who asks for these is told apart by `asks`.
OF_THE_STATEMENT = {"identity", "last_insert_id", "warning_count", "error_count"}


def statement(rng: random.Random, corpus: list[str]) -> str:
    words = rng.choice(corpus).split(" ")
    if rng.random() < 0.5:
        n = rng.randrange(len(words))
        changes: list[Callable[[str], str]] = [
            *["`{}`".format, '"{}"'.format] * 2,
            str.lower,
            lambda word: word.translate(ACCENTS),
            lambda word: f"`{word.translate(ACCENTS)}`",
            lambda word: f"app.{word}",
        ]
        words[n] = rng.choice(changes)(words[n])
    text = words[0]
    for before, word in itertools.pairwise(words):
        noise = rng.choice([" ", " ", "", *SPACES, *COMMENTS]) if rng.random() < 0.15 else " "
        text += ("" if before.startswith("@") and noise == " " else noise) + word
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        n = rng.choice((0, len(text), rng.randrange(len(text) + 1)))
        text = text[:n] + rng.choice([*ODD, *COMMENTS]) + text[n:]
    shape = rng.random()
    if shape < 0.05:
        text = f"{text} {rng.choice(ODD)} {rng.choice(corpus)}"
    elif shape < 0.15:  # something that swallows it, for one of the two
        text = (
            f"{rng.choice(('SELECT 1', text))} {rng.choice(HIDES).format(text.partition(' ')[2])}"
        )
    return text


class Sessions:
    """Two of one kind: one with a past, one without."""

    def __init__(self, database: Database, mode: str, charset: str) -> None:
        self.used, self.fresh = (
            MySQLConnection(  # connects in a tenth of the time, over TLS
                **database.connect_args(),
                autocommit=True,
                charset=charset,
                sql_mode=mode,
                client_flag=CLIENT.MULTI_STATEMENTS,
            )
            for _ in range(2)
        )
        self.mariadb = "MariaDB" in self.used.server_version
        self.run(self.used, "INSERT INTO ai VALUES (), ()")
        if self.mariadb:
            self.run(self.used, "SELECT NEXTVAL(q)")

    def close(self) -> None:
        for connection in (self.used, self.fresh):
            if connection.open:
                connection.close()

    def lock_is_free(self) -> bool:
        return bool(self.run(self.fresh, "SELECT IS_FREE_LOCK('x')") == [((1,),)])

    @staticmethod
    def run(connection: Any, sql: str) -> Any:
        """Rows of all its results, or the error."""
        found = []
        try:
            connection.query(sql)
            while True:
                found.append(connection._result.rows)
                if not connection._result.has_next:
                    return found
                connection.next_result()
        except pymysql.MySQLError as error:
            return [*found, error.args[0]]

    def state(self) -> dict[str, Any]:
        run = self.run
        (rows,) = run(self.used, "SHOW SESSION VARIABLES")
        state: dict[str, Any] = {
            name: value for name, value in rows if name not in VOLATILE | OF_THE_STATEMENT
        }
        for sql in (
            "SELECT @v, DATABASE(), CURRENT_ROLE(), IS_USED_LOCK('x'), LAST_INSERT_ID() = 4711",
            "SELECT * FROM tmp",
            "EXECUTE s",
            "HANDLER h READ FIRST",
        ):
            state[sql] = run(self.used, sql)
        return state

    def sees(self, sql: str) -> tuple[Any, Any]:
        """What it answers where something was before, and where nothing was."""
        self.run(self.used, "INSERT IGNORE INTO n VALUES ('abc'), ('def')")
        self.run(self.used, "SELECT SQL_CALC_FOUND_ROWS 1 UNION SELECT 2 UNION SELECT 3 LIMIT 1")
        self.run(self.used, "INSERT IGNORE INTO n VALUES ('abc'), ('def')")
        self.run(self.fresh, "DELETE FROM n WHERE a = 4711")
        if "ERROR" in sql.upper():
            self.run(self.used, "SELECT nonsense")
        return self.run(self.used, sql), self.run(self.fresh, sql)


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def database(request: pytest.FixtureRequest) -> Database:
    server: Server = request.getfixturevalue(request.param)
    database = server.create_database()
    connection = pymysql.connect(**database.connect_args(), autocommit=True)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a INT, `b c` VARCHAR(9) DEFAULT 'x') ENGINE=InnoDB")
        cursor.execute("INSERT INTO t (a) VALUES (1), (2)")
        cursor.execute("CREATE TABLE ai (id INT AUTO_INCREMENT PRIMARY KEY)")
        cursor.execute("CREATE TABLE n (a INT)")
        if request.param == "mariadb":
            cursor.execute("CREATE SEQUENCE q")
    return database


def test_the_harm_is_seen_without_noise(database: Database) -> None:
    """The tests below can fail: what they look at tells a touching statement, and a question."""
    for sql in TOUCHING:
        sessions = Sessions(database, "", "utf8mb4")
        sql = sql.replace("@ v", "@v")
        wait_until(sessions.lock_is_free)  # an earlier one may still be ending
        before = sessions.state()
        sessions.run(sessions.used, sql)
        assert sessions.state() != before, sql
        assert classify(sql).touches, sql
        sessions.close()
    sessions = Sessions(database, "", "utf8mb4")
    for sql in ASKING + (ON_MARIADB if sessions.mariadb else []):
        sql = sql.replace("@@ ", "@@")
        used, fresh = sessions.sees(sql)
        assert used != fresh, sql
        assert classify(sql) != Statement(), sql
    sessions.close()


def test_what_is_called_plain_does_no_harm(database: Database) -> None:
    end = time.monotonic() + SECONDS
    ran = worked = 0
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        sessions = Sessions(database, rng.choice(MODES), rng.choice(CHARSETS))
        corpus = TOUCHING + ASKING + ON_MARIADB + PLAIN
        before, plain = sessions.state(), []
        for _ in range(STATEMENTS):
            sql = statement(rng, corpus)
            known = classify(sql)
            if known.touches is not None:
                continue
            try:
                sql.encode(sessions.used.encoding)
            except UnicodeEncodeError:
                continue
            ran += 1
            plain.append(sql)
            if known == Statement() and sql.lstrip(" (")[:4].upper() in ("SELE", "SHOW", "TABL"):
                used, fresh = sessions.sees(sql)
                assert used == fresh, f"seed {seed}: {sql!r} sees the past"
            else:
                used = sessions.run(sessions.used, sql)
            worked += not isinstance(used[-1], int)
        after = sessions.state()
        changed = {name: (before[name], now) for name, now in after.items() if before[name] != now}
        assert not changed, f"seed {seed}: {changed} after one of {plain!r}"
        sessions.close()
        if time.monotonic() > end:
            break
    assert worked > ran / 5 > 10  # or the servers have taken none of it for SQL


def test_what_asks_is_known_to_ask(database: Database) -> None:
    """Also where it cannot be taken apart: what touches the session may still ask."""
    end = time.monotonic() + SECONDS
    told = worked = 0
    corpus = [sql for sql in ASKING + ON_MARIADB if "CONNECTION_ID" not in sql]
    corpus = [sql for sql in corpus if "pseudo_thread_id" not in sql]
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        sessions = Sessions(database, rng.choice(MODES), rng.choice(CHARSETS))
        for _ in range(STATEMENTS * 5):  # most need no server
            sql = statement(rng, corpus)
            if classify(sql).asks is not None:
                told += 1
                continue
            try:
                used, fresh = sessions.sees(sql)
            except UnicodeEncodeError:
                continue
            assert used == fresh, f"seed {seed}: {sql!r} sees the past"
            worked += not isinstance(used[-1], int)
        sessions.close()
        if time.monotonic() > end:
            break
    assert told > 1000
    assert worked > 10
