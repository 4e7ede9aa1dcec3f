"""Who is compared, and how each is set up: as its own README says, with the same bound.

Read by compare.py and behaviour.py, and by peers/settings.py inside the web server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WAIT = 30
"""Seconds to wait for a connection, where a contender lets one choose."""

CEILING = "ceiling"

GUNICORN_GEVENT = ("gunicorn", "-k", "gevent")


@dataclass(frozen=True)
class Contender:
    """One way to serve the shop.

    `command` follows `python -m`; `database` is merged into DATABASES["default"]; `packages` are
    what pip installs beside what pooled-serve itself needs.
    """

    name: str
    title: str
    command: tuple[str, ...]
    app: str = "shop.wsgi"
    database: dict[str, Any] = field(default_factory=dict)
    apps: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    venv: str = "plain"
    pymysql: bool = True  # whether the settings must put PyMySQL in the place of MySQLdb
    build: str = ""  # what the packages need to be built


def contenders(connections: int) -> list[Contender]:
    """All of them; those that have a bound may open so many connections at most."""

    def pooled(mode: str, title: str) -> Contender:
        return Contender(
            f"pooled-{mode}",
            title,
            (
                *("pooled_serve", "--pool-mode", mode, "--pool-timeout", str(WAIT)),
                *("--pool-size", str(connections), "--max-outstanding", str(connections)),
            ),
            venv="pooled-serve",
            pymysql=False,
        )

    return [
        pooled("request", "pooled-serve"),
        pooled("transaction", "pooled-serve, transaction mode"),
        Contender(
            "django-db-pooling",
            "django-db-pooling",
            GUNICORN_GEVENT,
            app="peers.django_db_pooling_wsgi",
            database={"CONN_MAX_AGE": 60},
            packages=("django-db-pooling==0.0.4",),
            venv="django-db-pooling",
        ),
        Contender(
            "django-mysql-geventpool",
            "django-mysql-geventpool",
            GUNICORN_GEVENT,
            database={
                "ENGINE": "django_mysql_geventpool.backends.mysql",
                "OPTIONS": {"MAX_CONNS": connections, "MAX_LIFETIME": 5 * 60},
            },
            apps=("django_mysql_geventpool",),
            packages=("django-mysql-geventpool==0.2.5",),
            venv="django-mysql-geventpool",
        ),
        Contender(
            "django-db-connection-pool",
            "django-db-connection-pool",
            GUNICORN_GEVENT,
            database={
                "ENGINE": "dj_db_conn_pool.backends.mysql",
                "POOL_OPTIONS": {"POOL_SIZE": connections, "MAX_OVERFLOW": 0, "TIMEOUT": WAIT},
            },
            packages=("django-db-connection-pool==1.2.6",),
            venv="django-db-connection-pool",
        ),
        Contender(
            "dbutils",
            "DBUtils PooledDB",
            GUNICORN_GEVENT,
            database={"ENGINE": "peers.pooled_db", "CONNECTIONS": connections},
            packages=("dbutils==3.2.0",),
            venv="dbutils",
        ),
        Contender(
            "plain-0",
            "Django, `CONN_MAX_AGE=0`, no bound",
            GUNICORN_GEVENT,
            database={"CONN_MAX_AGE": 0},
        ),
        Contender(
            "plain-60",
            "Django, `CONN_MAX_AGE=60`, no bound",
            GUNICORN_GEVENT,
            database={"CONN_MAX_AGE": 60},
        ),
        Contender(
            "gthread",
            "Django, mysqlclient in threads",
            ("gunicorn", "-k", "gthread", "--threads", str(connections)),
            database={"CONN_MAX_AGE": 60},
            packages=("mysqlclient",),
            venv="mysqlclient",
            pymysql=False,
            build="apt install gcc python3-dev pkg-config default-libmysqlclient-dev",
        ),
        Contender(
            CEILING,
            "ceiling: a bare stack, no bound",
            GUNICORN_GEVENT,
            database={"ENGINE": "peers.stack"},
        ),
    ]


def contender(name: str, connections: int) -> Contender:
    return next(known for known in contenders(connections) if known.name == name)
