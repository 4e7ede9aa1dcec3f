"""What statements leave behind: known to be plain, or taken to touch the session."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies

from pooled_serve.driver.statements import PLAIN_VERBS, Statement, classify
from support.memory import most_held
from support.torture import torture

PLAIN = [
    "SELECT 1",
    "select * from t where a = %s",
    "  \n SELECT 1",
    "(SELECT 1) UNION (SELECT 2)",
    "((SELECT 1))",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "INSERT INTO t (a) VALUES (%s), (%s)",
    "INSERT INTO t (a) VALUES (%s) RETURNING id",
    "INSERT INTO t (a) VALUES ('me@example.com')",
    "UPDATE t SET a = %s, b = a + 1 WHERE c = %s",
    "DELETE FROM t WHERE a IN (%s, %s)",
    "REPLACE INTO t VALUES (1)",
    "SELECT `a@b`, \"x := y\", 'it''s; SET x' FROM `t;`",
    "SELECT 1 -- ; SET x = 1",
    "SELECT 1 # @x := 1",
    "SELECT /* SET @x = 1; */ 1",
    "SELECT /*+ SET_VAR(sort_buffer_size = 16M) */ 1",
    "SELECT 1;",
    "SELECT a FROM t FOR UPDATE SKIP LOCKED",
    "SHOW TABLES",
    "SELECT @@version, @@session.sql_mode",
    "EXPLAIN SELECT 1",
    "DESCRIBE t",
    "VALUES ROW(1)",
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "COMMIT",
    "ROLLBACK TO SAVEPOINT `s1`",
    "SAVEPOINT `s140_x1`",
    "RELEASE SAVEPOINT `s140_x1`",
    "SELECT last_insert_id FROM t",
    "SELECT user_lock, set_at FROM t",
    b"SELECT 1",
    "INSERT INTO `db`.`t` (`a`) VALUES (%s)",
    "SELECT `db`.`t`.`a` FROM `db`.`t` WHERE `t`.`a` IN (1)",
    "INSERT INTO `größe` (`maß`) VALUES ('ü')",
    "SELECT `größe`.`maß` FROM `größe` WHERE `größe`.`maß` IN (%s)",
    "SHOW VARIABLES LIKE 'sql_mode'",
    "SHOW STATUS LIKE 'Threads_connected'",
    "SHOW SESSION STATUS LIKE 'Ssl_cipher'",
    "SHOW VARIABLES LIKE 'wait%%'",
    "SHOW GLOBAL STATUS LIKE 'Threads%%'",
    "SHOW VARIABLES WHERE variable_name IN ('transaction_isolation', 'tx_isolation')",
    "SHOW SESSION VARIABLES WHERE `Variable_name` = 'sql_mode';",
    "SHOW STATUS LIKE 'Uptime'",
    "SHOW TABLE STATUS",
    "SELECT 'x' -- profiling",
    "SELECT 1 --\n",
    "SELECT 1 --",
    "SELECT profiling FROM xa",
    "COMMIT AND CHAIN",
    "ROLLBACK TO s1",
]

TOUCHING: dict[str | bytes, str] = {
    "SET autocommit = 0": "variable",
    "SET @x = 1": "variable",
    "SET SESSION sql_mode = ''": "variable",
    "SET NAMES latin1": "variable",
    "SET ROLE admin": "role",
    "SET DEFAULT ROLE admin": "role",
    "  set time_zone = '+00:00'": "variable",
    "USE other": "database",
    "LOCK TABLES t WRITE": "table lock",
    "UNLOCK TABLES": "unknown",
    "PREPARE s FROM 'SELECT 1'": "prepared statement",
    "EXECUTE s": "prepared statement",
    "DEALLOCATE PREPARE s": "unknown",
    "CALL p()": "procedure",
    "CREATE TEMPORARY TABLE t (a INT)": "temporary table",
    "CREATE TABLE t (a INT)": "unknown",
    "HANDLER t OPEN": "unknown",
    "LOAD DATA INFILE 'x' INTO TABLE t": "unknown",
    "XA START 'x'": "XA transaction",
    "DO SLEEP(1)": "unknown",
    "START SLAVE": "unknown",
    "BEGIN NOT ATOMIC SET @x = 1; END": "several statements",
    "SELECT @x": "variable",
    "SELECT @x := 1": "variable",
    "SELECT 1 INTO @x": "variable",
    "SELECT GET_LOCK('a', 1)": "lock",
    "SELECT get_lock ('a', 1)": "lock",
    "SELECT RELEASE_ALL_LOCKS()": "lock",
    "UPDATE t SET id = LAST_INSERT_ID(id + 1)": "LAST_INSERT_ID(expr)",
    "SELECT SQL_CALC_FOUND_ROWS * FROM t": "SQL_CALC_FOUND_ROWS",
    "SELECT 1; SET @x = 1": "several statements",
    "SELECT /*! @x := */ 1": "unknown",
    "SELECT /*!40001 SQL_NO_CACHE */ 1": "unknown",
    "SELECT /*M! 1 */ 1": "unknown",
    "/* hello */ SET @x = 1": "variable",
    "-- hello\nSET @x = 1": "variable",
    "SELECT 'a\\', @x := 1, '": "unknown",
    "SELECT 'open": "unknown",
    "SELECT 1 /* open": "unknown",
    "": "unknown",
    "garbage": "unknown",
    "SELECT `GET_LOCK`('x', 0)": "lock",
    'SELECT "get_lock" ("x", 0)': "lock",
    "SELECT `gét_lock`('x', 0)": "unknown",
    "SELECT gét_lock('x', 0)": "unknown",
    "SELECT 1 --\xa0, '\n, @x := 1 -- '": "unknown",
    "SELECT 1 --\x01'\n, @x := 1 -- '": "unknown",
    "SELECT 1 --\x7f'\n, @x := 1 -- '": "unknown",
    "SELECT\xa01": "unknown",
    "SELECT 1\0": "unknown",
    "SELECT 1 -- \0": "unknown",
    "SELECT $$ ' $$, @x := 1, $$ ' $$": "unknown",
    "SELECT /*+ QB_NAME(`*/`) */ @x := 1 -- `": "unknown",
    "SELECT 1--1": "unknown",
    "SELECT @@@x": "variable",
    "SELECT @'x'": "variable",
    "SELECT sys.format_statement('x')": "procedure",
    "SELECT `db` . `f` (1)": "procedure",
    "SELECT NEXTVAL(q)": "sequence",
    "INSERT INTO t VALUES (NEXT VALUE FOR q)": "sequence",
    "SHOW VARIABLES LIKE 'last\\_insert\\_id'": "unknown",
    "SET profiling = 1": "profiling",
    "SET @x = 1, SESSION `profiling` = 1": "profiling",
    "PREPARE s FROM 'SET profiling = 1'": "profiling",
    "SET `prófiling` = 1": "profiling",
    "SET @@session.PRÓFILING = 1": "profiling",
    "SET `öptimizer_trace` = 'enabled=on'".encode(): "optimizer trace",
    "SET RESOURCE GROUP slow": "resource group",
    "SET RESOURCE/* x */GROUP slow": "resource group",
    "/*!80000 SET RESOURCE GROUP slow */": "resource group",
    "SET optimizer_trace = 'enabled=on'": "optimizer trace",
    "UPDATE `performance_schema`.threads SET instrumented = 'NO'": "performance schema",
    "USE performance_schema": "performance schema",
    "XA PREPARE 'x'": "XA transaction",
    "BEGIN NOT ATOMIC": "unknown",
    "BEGIN SET": "unknown",
    "GET DIAGNOSTICS @x = NUMBER": "variable",
    b"SELECT '\x81\x60'": "unknown",
    "ANALYZE TABLE t": "unknown",
}

ASKING = {
    "SELECT LAST_INSERT_ID()": "LAST_INSERT_ID()",
    "select last_insert_id( )": "LAST_INSERT_ID( )",
    "SELECT FOUND_ROWS()": "FOUND_ROWS(",
    "SELECT ROW_COUNT()": "ROW_COUNT(",
    "SHOW WARNINGS": "SHOW WARNINGS",
    "SHOW COUNT(*) ERRORS": "SHOW COUNT(*) ERRORS",
    "SELECT @@warning_count": "@@WARNING_COUNT",
    "SELECT @@session.last_insert_id": "@@SESSION.LAST_INSERT_ID",
    "SELECT @@local . identity": "@@LOCAL . IDENTITY",
    "--\x01\nSELECT @@local#\n. identity": "@@LOCAL# . IDENTITY",
    "SELECT @@`last_insert_id`": "@@ LAST_INSERT_ID",
    "SELECT @@`lást_insert_ïd`": "LAST_INSERT_ID",
    "SELECT @@wärning_count": "WARNING_COUNT",
    "/*! */ SHOW SESSION STATUS": "/*! */ SHOW SESSION STATUS",
    "SHOW VARIABLES LIKE 'last_insért_id'": "SHOW VARIABLES",
    "SELECT `LAST_INSERT_ID`/* */()": "LAST_INSERT_ID ()",
    "SELECT LASTVAL(s)": "LASTVAL(",
    "SELECT PREVIOUS VALUE FOR s": "PREVIOUS VALUE FOR",
    "SELECT s.currval": ".CURRVAL",
    "INSERT INTO t VALUES (LAST_INSERT_ID())": "LAST_INSERT_ID()",
    "GET CURRENT DIAGNOSTICS @n = NUMBER": "GET CURRENT DIAGNOSTICS",
    "SELECT @@last_gtid": "@@LAST_GTID",
    "SET @x = ROW_COUNT()": "ROW_COUNT(",
    "SELECT 1; SHOW ERRORS": "SHOW ERRORS",
    "SELECT 'a\\', ROW_COUNT(), '": "ROW_COUNT(",
    "/*! SHOW */ /*!50000 WARNINGS */": "SHOW */ /*!50000 WARNINGS",
    "EXECUTE IMMEDIATE 'SELECT ROW_COUNT()'": "ROW_COUNT",
    "SHOW LOCAL STATUS": "SHOW LOCAL STATUS",
    "SHOW VARIABLES": "SHOW VARIABLES",
    "SHOW VARIABLES LIKE '_dentity'": "SHOW VARIABLES",
    "SHOW VARIABLES LIKE 'last%%'": "SHOW VARIABLES",
    "SHOW VARIABLES WHERE variable_name IN ('sql_mode', 'identity')": "SHOW VARIABLES",
    "SHOW VARIABLES WHERE variable_name != 'sql_mode'": "SHOW VARIABLES",
    "SHOW STATUS WHERE variable_name IN ('Threads_connected', 'Questions')": "SHOW STATUS",
    "SHOW SESSION STATUS LIKE 'Bytes_sent'": "SHOW SESSION STATUS",
    "SHOW PROFILE FOR QUERY 1": "SHOW PROFILE",
    "SELECT * FROM information_schema.`session_variables`": "SESSION_VARIABLES",
    "SELECT @@rand_seed1": "@@RAND_SEED1",
}


KEEPING = [
    "SELECT CONNECTION_ID()",
    "SELECT @@`pseudo_thread_id`",
    "SHOW FULL PROCESSLIST",
    "SELECT `connection_id` /* x */ ()",
    "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx",
    "SELECT PS_CURRENT_THREAD_ID()",
]


@pytest.mark.parametrize("sql", PLAIN, ids=repr)
def test_plain_statements_cost_nothing(sql: str) -> None:
    it = classify(sql)
    assert it.touches is it.asks is it.keeps is None


@pytest.mark.parametrize("sql", KEEPING)
def test_what_tells_the_number_of_a_connection_keeps_it(sql: str) -> None:
    assert classify(sql) == Statement(keeps="connection id")


@pytest.mark.parametrize("sql", TOUCHING, ids=repr)
def test_what_touches_the_session_is_told_by_name(sql: str | bytes) -> None:
    assert classify(sql).touches == TOUCHING[sql]


@pytest.mark.parametrize("sql", ASKING)
def test_questions_about_the_statement_before_are_recognized(sql: str) -> None:
    assert classify(sql).asks == ASKING[sql]


@pytest.mark.parametrize("sql", ["SELECT 'LAST_INSERT_ID()'", "SELECT last_insert_id(3)"])
def test_what_only_looks_like_a_question_is_none(sql: str) -> None:
    assert classify(sql).asks is None


noise = strategies.sampled_from(
    [" ", "\n", "\t", "/* x */", "-- x\n", "# x\n", "(", "/*+ MAX_EXECUTION_TIME(1) */"]
)


@given(verb=strategies.from_regex(r"[A-Za-z_]{1,12}", fullmatch=True), rest=strategies.text())
def test_unknown_verbs_touch(verb: str, rest: str) -> None:
    known = {*PLAIN_VERBS, "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "START"}
    if verb.upper() not in known:
        assert classify(f"{verb} {rest}").touches is not None


@given(
    before=strategies.lists(noise),
    sql=strategies.sampled_from([sql for sql in TOUCHING if isinstance(sql, str) and sql.strip()]),
)
def test_noise_in_front_hides_nothing(before: list[str], sql: str) -> None:
    assert classify("".join(before) + sql).touches is not None


@given(
    head=strategies.sampled_from(["SELECT 1, ", "INSERT INTO t SELECT ", "(SELECT a FROM t), "]),
    tail=strategies.sampled_from(["@x := 1", "GET_LOCK('a', 1)", "LAST_INSERT_ID(1)", "1; USE x"]),
    middle=strategies.text(alphabet="'\"`\\/*-# \nab", max_size=12),
)
def test_nothing_dangerous_hides_behind_quotes_and_comments(
    head: str, middle: str, tail: str
) -> None:
    """Either it is seen, or the text before it has opened something that swallows it."""
    if classify(f"{head}{middle} {tail}").touches is None:
        assert set(middle) & set("'\"`/-#")


@given(strategies.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    classify(text)
    classify(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_will_do(kind: type) -> None:
    assert classify(kind(b"SELECT 1")) == classify("SELECT 1")
    assert classify(kind(b"SET @x = 1")).touches == "variable"
    assert classify(memoryview(bytearray(b"SHOW WARNINGS"))).asks == "SHOW WARNINGS"
    assert classify(1).touches == classify(None).touches == "unknown"


# --- What it costs -----------------------------------------------------------------------------


@torture
@pytest.mark.parametrize("letter", ["a", "é", "\u8868", "\U0001f600"])
@pytest.mark.parametrize("length", [100, 550, 2300, 100_000])
def test_what_is_remembered_is_a_few_megabytes_at_most(letter: str, length: int) -> None:
    def works() -> Iterator[object]:
        for n in range(50 if length > 10_000 else 1100):
            classify(f"SELECT LAST_INSERT_ID({n}), '{letter * length}'")
            yield classify(f"SELECT {n} AS a, '{letter * length}'".encode())

    assert most_held(works()) < 5_000_000


def test_a_statement_is_taken_apart_once() -> None:
    sql = "SELECT a FROM t WHERE b = %s"
    classify(sql)
    assert classify("".join(sql)) is classify(sql)


LONG = [
    *(
        "'",
        '"',
        "`",
        "/*",
        "/*+",
        "/*!",
        "--",
        "-- ",
        "#",
        "*/",
        "(",
        ")",
        "\\",
        "@",
        "@@",
        ".",
        ";",
    ),
    *(
        " ",
        "\n",
        "a",
        "1",
        "''",
        "`a`",
        "`é`.",
        "'a",
        "SHOW ",
        "PREVIOUS ",
        "GET ",
        "@@ ",
        "a.",
        "a. ",
    ),
    *(
        "LAST_INSERT_ID(",
        "SHOW COUNT(",
        "-- \n",
        "/**/",
        "(a",
        "FROM ",
        "INTO ",
        "x.y (",
        "`a``b` ",
    ),
    *(
        "LAST_INSERT_ID(1) é",
        "GET_LOCK(\u8868",
        "COMMIT AND ",
        "$",
        "é",
        "\\SHOW a ",
        "\\@@",
        "RESOURCE ",
        "SET RESOURCE ",
        "BEGIN ",
    ),
]


@torture
@pytest.mark.parametrize("head", ["SELECT ", "SET ", "\\"])
@pytest.mark.timing
def test_the_time_grows_with_the_length(head: str, subtests: pytest.Subtests) -> None:
    """Eight times as long may take eight times as long, not 64 times."""

    def seconds(length: int) -> float:
        sql = head + piece * (length // len(piece))
        best = math.inf
        for _ in range(2):
            start = time.process_time()
            classify(sql)
            best = min(best, time.process_time() - start)
        return best

    for piece in LONG:
        with subtests.test(piece):
            assert seconds(64_000) < 30 * max(seconds(8_000), 0.0005)
