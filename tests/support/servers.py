"""Private database servers, and fresh databases on them."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.client import Admin
from support.ports import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# The examples ship the starter that readers use; the tests use it too, from where it is.
sys.path.append(str(EXAMPLES))

from private_database import USER, PrivateDatabase, tied_to_us  # noqa: E402

__all__ = ["USER", "Database", "Server", "ServerMissing", "mariadb", "mysql", "tied_to_us"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pooled-serve-tests"

_numbers = itertools.count(1)

# What servers begin with, by program.
_made: dict[Path | None, Path] = {}
_scratch = tempfile.TemporaryDirectory(prefix="pooled-serve-tests-")


class ServerMissing(Exception):
    """This server cannot be had here; str() is one line that says why."""


@dataclass(frozen=True)
class Database:
    """An empty database, and a user who may do anything in it and nothing elsewhere."""

    name: str
    user: str
    password: str
    host: str
    port: int

    def via(self, port: int) -> Database:
        """The same one, seen through a proxy."""
        return replace(self, port=port)

    def connect_args(self) -> dict[str, Any]:
        """For pymysql.connect()."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "database": self.name,
        }

    def django(self, **settings: object) -> dict[str, Any]:
        """An entry for Django's DATABASES."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "HOST": self.host,
            "PORT": self.port,
            "USER": self.user,
            "PASSWORD": self.password,
            "NAME": self.name,
            **settings,
        }


class Server(PrivateDatabase):
    """A PrivateDatabase that hands out databases and has its administrator at hand."""

    def __init__(
        self,
        directory: Path | str,
        *,
        extra_options: Sequence[str] = (),
        server: Path | None = None,
    ) -> None:
        super().__init__(directory, extra_options=extra_options, server=server)
        self.port = free_port()
        self.admin = Admin(self.admin_url())

    def kill(self) -> None:
        self.admin.close()
        super().kill()

    def _create_data(self) -> None:
        """As the first server of this kind had it made, which takes ten times as long as a copy."""
        made = _made.get(self.server)
        if made:
            copy(made, self._data)
        else:
            super()._create_data()
            _made[self.server] = copy(self._data, Path(_scratch.name, f"data{len(_made)}"))

    def create_database(self, *, max_user_connections: int = 0) -> Database:
        """0 connections stands for no limit, as it does for the server."""
        name = f"app{next(_numbers)}"
        password = secrets.token_urlsafe(12)
        self.admin.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        # Over TCP and over the socket a user arrives from different hosts, "%" would lose the
        # second to the anonymous user that MariaDB has on localhost.
        for host in ("127.0.0.1", "localhost"):
            account = f"{name}@{host}"
            self.admin.query(
                f"CREATE USER {account} IDENTIFIED BY '{password}'"
                f" WITH MAX_USER_CONNECTIONS {max_user_connections}"
            )
            self.admin.query(f"GRANT ALL ON {name}.* TO {account}")
        return Database(name, name, password, "127.0.0.1", self.port)


def copy(data: Path, to: Path) -> Path:
    """A data directory, with all that is in it."""
    # A redo log of 100 MB is mostly holes.
    subprocess.run(["cp", "-a", "--sparse=always", data, to], check=True)
    return to


NEWER_MARIADB = os.environ.get("MARIADB", "")
"""The MariaDB of all tests: empty for the one of this machine, 11.8 for that of get_mariadb.sh."""


def mariadb(directory: Path, *options: str) -> Server:
    """Without TLS unless options bring a certificate: tests look into what goes over the wire, and
    11.8 would make itself one.

    Raise ServerMissing where MARIADB asks for one that cannot be had.
    """
    return Server(directory, extra_options=("--skip-ssl", *options), server=mariadb_program())


def mariadb_program() -> Path | None:
    """None for the one of this machine, which is found later. Raise ServerMissing."""
    if not NEWER_MARIADB:
        return None
    assert NEWER_MARIADB == "11.8", f"MARIADB={NEWER_MARIADB}: only 11.8 is known"
    return downloaded("get_mariadb.sh", f"mariadb{NEWER_MARIADB}") / "sbin" / "mariadbd"


def mysql(directory: Path, *options: str) -> Server:
    """Raise ServerMissing where MySQL can be neither found nor downloaded."""
    # Without fsync() making a database takes a quarter of the time.
    return Server(
        directory,
        extra_options=("--innodb-flush-method=nosync", *options),
        server=downloaded("get_mysql.sh", "mysql") / "mysqld",
    )


def downloaded(script: str, name: str) -> Path:
    """The folder in which one of the scripts beside this file puts programs, once per user: it
    takes up to 60 MB and half a minute.

    Raise ServerMissing where they cannot be had.
    """
    folder = CACHE / name
    done = subprocess.run(
        [Path(__file__).with_name(script), folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServerMissing((done.stderr.strip() or f"{script} failed").splitlines()[-1])
    return folder


def create_twin(database: Database, server: Server) -> Database:
    """A database and user of the same name and password on another server."""
    server.admin.query(f"CREATE DATABASE {database.name}")
    for host in ("127.0.0.1", "localhost"):
        account = f"{database.user}@{host}"
        server.admin.query(f"CREATE USER {account} IDENTIFIED BY '{database.password}'")
        server.admin.query(f"GRANT ALL ON {database.name}.* TO {account}")
    return database.via(server.port)
