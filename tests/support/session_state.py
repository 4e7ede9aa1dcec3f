"""Kinds of state that a user may leave in a session, and a look whether the next one finds it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from support.django_project import write_project
from support.script import run_function
from support.servers import Database, Server

SCRIPTS = "backend/clean_sessions_scripts.py"

KINDS = {
    "open transaction": 'run("BEGIN"); run("INSERT INTO t VALUES (1)")',
    "open transaction of Django": """
        transaction.set_autocommit(False)
        run("INSERT INTO t VALUES (1)")
    """,
    "XA transaction": """run("XA START 'x'"); run("INSERT INTO t VALUES (1)")""",
    "LOCK TABLES": 'run("LOCK TABLES t WRITE")',
    "GET_LOCK": """run("SELECT GET_LOCK(CONCAT(DATABASE(), 'x'), 0)")""",
    "HANDLER": 'run("HANDLER t OPEN AS h")',
    "temporary table": 'run("CREATE TEMPORARY TABLE tmp (n INT)")',
    "temporary table over another": 'run("CREATE TEMPORARY TABLE t (m INT)")',
    "user variable": 'run("SET @x = 1")',
    "user variable in a select": 'run("SELECT 1 INTO @x")',
    "session variable": 'run("SET SESSION sort_buffer_size = 1048576")',
    "sql_mode": """run("SET sql_mode = 'ANSI_QUOTES'")""",
    "time_zone": """run("SET time_zone = '+05:00'")""",
    "isolation level": 'run("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")',
    "isolation level of the next transaction": """
        run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    """,
    "read only": 'run("SET SESSION TRANSACTION READ ONLY")',
    "SET NAMES": 'run("SET NAMES latin1")',
    "set_character_set()": 'connection.connection.set_character_set("latin1")',
    "USE": 'run("USE " + other)',
    "select_db()": "connection.connection.select_db(other)",
    "prepared statement": """run("PREPARE s FROM 'SELECT 1'")""",
    "SET ROLE": 'run("SET ROLE " + role)',
    "SET ROLE, and then a variable": 'run("SET ROLE " + role); run("SET @x = 1")',
    "SET ROLE, prepared": """
        run("SET @x = CONCAT('SET ROLE ', %s)", role)
        run("PREPARE s FROM @x")
        run("EXECUTE s")
    """,
    "autocommit=0": 'run("SET autocommit = 0"); run("INSERT INTO t VALUES (1)")',
    "foreign_key_checks=0": 'run("SET foreign_key_checks = 0")',
    "procedure": 'run("CALL p()")',
    "callproc()": 'connection.cursor().callproc("p")',
    "procedure that begins": 'run("CALL begins()")',
    "several": """
        run("USE " + other)
        run("SET NAMES latin1")
        run("SET @x = 1, sql_mode = '', autocommit = 0")
        run("CREATE TEMPORARY TABLE tmp (n INT)")
        run("LOCK TABLES " + home + ".t WRITE")
    """,
}

ENDINGS = ["ok", "exception", "killed", "killed in a query", "forgotten"]
"""How the user before goes: at the end of a request, after an error that the server told, and
without giving the connection back in three ways."""


# Counters, clocks, and what tells of the last statement.
VOLATILE = {
    "error_count",
    "external_user",
    "gtid_executed",
    "identity",
    "insert_id",
    "last_insert_id",
    "pseudo_thread_id",
    "rand_seed1",
    "rand_seed2",
    "statement_id",
    "timestamp",
    "warning_count",
}


def run_cases(
    server: Server,
    folder: Path,
    mode: str,
    pairs: list[tuple[str, str]],
    *,
    port: int | None = None,
    **settings: object,
) -> Any:
    """What was found for each of them.

    :param port: of a proxy in front of the server, through which the project connects.
    """
    home, other = database_and_more(server)
    seen = home.via(port or home.port)
    project = write_project(folder, databases={"default": seen.django(**settings)})
    given = {
        "kinds": {name: dedent(code).strip() for name, code in KINDS.items()},
        "cases": pairs,
        "volatile": sorted(VOLATILE),
        "settings": home.django(),
        "home": home.name,
        "other": other,
        "role": f"{home.name}_role",
    }
    return run_function(
        project,
        SCRIPTS,
        "try_all",
        given,
        size=1,
        cap=1,
        within=10.0 + 5.0 * len(pairs),
        POOLED_SERVE_POOL_MODE=mode,
    )


def database_and_more(server: Server) -> tuple[Database, str]:
    """A database with what the kinds of state need, and the name of a second one."""
    home = server.create_database()
    other, role = f"{home.name}_other", f"{home.name}_role"
    run = server.admin.query
    run(f"CREATE DATABASE {other}")
    run(f"CREATE ROLE {role}")
    run(f"CREATE TABLE {home.name}.t (n INT) ENGINE=InnoDB")
    run(f"CREATE TABLE {other}.t (other INT) ENGINE=InnoDB")
    run(f"CREATE TABLE {home.name}.texts (s VARCHAR(20)) ENGINE=InnoDB CHARSET=utf8mb4")
    run(
        f"CREATE PROCEDURE {home.name}.p() BEGIN SET @x = 1; SET SESSION sort_buffer_size = 65536;"
        " SET time_zone = '+03:00'; CREATE TEMPORARY TABLE tmp (n INT); END"
    )
    run(
        f"CREATE PROCEDURE {home.name}.begins()"
        f" BEGIN START TRANSACTION; INSERT INTO {home.name}.t VALUES (1); END"
    )
    for host in ("127.0.0.1", "localhost"):
        account = f"{home.user}@{host}"
        run(f"GRANT ALL ON {other}.* TO {account}")
        run(f"GRANT PROCESS ON *.* TO {account}")
        run(f"GRANT {role} TO {account}")
    return home, other
