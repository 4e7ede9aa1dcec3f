"""What statements leave behind: known to be plain, or taken to touch the session."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from pooled_serve.driver.statements import PLAIN_VERBS, classify

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
]

TOUCHING = {
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
    "EXECUTE s": "unknown",
    "DEALLOCATE PREPARE s": "unknown",
    "CALL p()": "procedure",
    "CREATE TEMPORARY TABLE t (a INT)": "temporary table",
    "CREATE TABLE t (a INT)": "unknown",
    "HANDLER t OPEN": "unknown",
    "LOAD DATA INFILE 'x' INTO TABLE t": "unknown",
    "XA START 'x'": "unknown",
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
    "SELECT LASTVAL(s)": "LASTVAL(",
    "SELECT PREVIOUS VALUE FOR s": "PREVIOUS VALUE FOR",
    "INSERT INTO t VALUES (LAST_INSERT_ID())": "LAST_INSERT_ID()",
}


@pytest.mark.parametrize("sql", PLAIN, ids=repr)
def test_plain_statements_cost_nothing(sql: str) -> None:
    assert classify(sql).touches is None
    assert classify(sql).asks is None


@pytest.mark.parametrize("sql", TOUCHING)
def test_what_touches_the_session_is_told_by_name(sql: str) -> None:
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
    sql=strategies.sampled_from([sql for sql in TOUCHING if sql.isascii() and sql.strip()]),
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
