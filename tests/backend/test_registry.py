"""Which databases are pooled, each in a pool of its own."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from support.script import run_function
from support.servers import Database, Server
from support.torture import torture

SCRIPTS = "backend/registry_scripts.py"


def test_each_mysql_database_has_a_pool_and_others_have_none(
    project: Any, mariadb: Server, tmp_path: Path
) -> None:
    first, second = mariadb.create_database(), mariadb.create_database()
    databases = {
        "default": first.django(),
        "other": second.django(),
        "small": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")},
    }
    names, pools, in_use = run_function(
        project(databases=databases), SCRIPTS, "each_mysql_database_has_a_pool_and_others_have_none"
    )
    assert names == [first.name, second.name, 1]
    assert pools == ["default", "other"]
    assert in_use == 1


ENGINE = """
    from django.db.backends.mysql import base

    class DatabaseWrapper(base.DatabaseWrapper):
        opened = 0

        def get_new_connection(self, conn_params):
            type(self).opened += 1
            DatabaseWrapper.opened += 1
            return super().get_new_connection(conn_params)

        def init_connection_state(self):
            super().init_connection_state()
            with self.cursor() as cursor:
                cursor.execute("SET @own = 'set'")
"""


def engine(folder: Path, source: str) -> None:
    package = folder / "mysite" / "engine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text(dedent(source))


@torture
def test_an_engine_built_on_djangos_is_pooled_and_keeps_its_ways(
    project: Any, database: Database
) -> None:
    folder = project(databases={"default": database.django(ENGINE="mysite.engine")})
    engine(folder, ENGINE)
    run_function(folder, SCRIPTS, "an_engine_built_on_djangos_is_pooled_and_keeps_its_ways")


def test_an_engine_is_imported_before_threads_can_get_in_each_others_way(
    project: Any, serve: Any, database: Database
) -> None:
    # With gevent's patches a few that import it for the first time, at once, may never end.
    views = """
        import sys
        from django.http import JsonResponse

        def imported(request):
            names = "pooled_serve.backend.database", "mysite.engine.base"
            return JsonResponse([name in sys.modules for name in names], safe=False)
    """
    folder = project(views, databases={"default": database.django(ENGINE="mysite.engine")})
    engine(folder, ENGINE)
    assert serve(folder).get("/imported").json() == [True, True]
    # The engine of who calls pooling is imported at first use, as in stock Django.
    module = "pooled_serve.backend.database"
    assert run_function(project(databases={}), SCRIPTS, "is_loaded", module)


def test_an_engine_that_connects_by_itself_is_told_so_and_costs_no_slot(
    project: Any, database: Database
) -> None:
    folder = project(databases={"default": database.django(ENGINE="mysite.engine")})
    engine(
        folder,
        """
        import MySQLdb
        from django.db.backends.mysql import base

        class DatabaseWrapper(base.DatabaseWrapper):
            def get_new_connection(self, conn_params):
                return MySQLdb.connect(**conn_params)
        """,
    )
    run_function(folder, SCRIPTS, "an_engine_that_connects_by_itself_is_told_so_and_costs_no_slot")


def test_a_database_that_is_renamed_gets_a_new_pool(
    project: Any, mariadb: Server, database: Database
) -> None:
    mariadb.admin.query(f"CREATE DATABASE test_{database.name}")
    for host in ("127.0.0.1", "localhost"):
        mariadb.admin.query(f"GRANT ALL ON test_{database.name}.* TO {database.user}@{host}")
    name = database.name
    assert run_function(
        project(databases={"default": database.django()}),
        SCRIPTS,
        "a_database_that_is_renamed_gets_a_new_pool",
    ) == [
        name,
        f"test_{name}",
        name,
    ]
