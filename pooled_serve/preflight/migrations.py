"""What --check notes of migrations that are not applied. Only reads."""

from __future__ import annotations

from collections.abc import Iterator

from pooled_serve.driver import error_codes as codes
from pooled_serve.errors import Finding, Level

_TABLE = "django_migrations"


def notes() -> Iterator[Finding]:
    """Tell of migrations that are not applied to the default database."""
    from django.db import DatabaseError, connections
    from django.db.migrations.executor import MigrationExecutor
    from django.db.migrations.loader import MigrationLoader

    connection = connections["default"]
    # A server leaves out of its tables those that an account has no rights on: to Django it looks
    # as if nothing were applied.
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT app, name FROM {_TABLE} LIMIT 1")
    except DatabaseError as error:
        if codes.code_of(error) in codes.NO_RIGHTS_ON_TABLE:
            if not MigrationLoader(None).graph.leaf_nodes():  # there are none that could be missing
                return
            name = connection.settings_dict["NAME"]
            text = (
                f"this account may not read {_TABLE}, so that nothing is known of migrations: "
                f"GRANT SELECT ON {name}.{_TABLE} to it"
            )
            yield Finding(Level.NOTE, "", "default", text)
            return
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        number = f"{len(plan)} migrations are" if len(plan) > 1 else "1 migration is"
        first = f"{plan[0][0].app_label}.{plan[0][0].name}"
        text = f"{number} not applied, the first is {first}: run manage.py migrate"
        yield Finding(Level.NOTE, "", "default", text)
