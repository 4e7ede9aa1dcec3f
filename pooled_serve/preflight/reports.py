"""What the preflight has found: the project, its databases, and what their servers say."""

from __future__ import annotations

from dataclasses import dataclass

from pooled_serve.errors import Finding


@dataclass(frozen=True)
class ServerFacts:
    """What a database server reports about itself."""

    engine: str  # as in MariaDB 10.11.19
    wait_timeout: int  # seconds
    max_connections: int
    max_user_connections: int  # 0: no limit per user
    in_use: int  # connections of all users, without the one that asked
    answer_seconds: float
    in_use_by_user: int = 0  # of the same user; counts against max_user_connections
    behind_router: bool = False  # MySQL Router answers for it
    identity: str = ""  # the same for all names of one server: localhost, its socket, a proxy
    tls: str = ""  # "TLS, verified", "TLS, not verified" or "no TLS"; empty through a Unix socket
    port: int = 0  # that it listens on, whichever way it was asked; 0: not known

    @property
    def kind(self) -> str:
        """MariaDB or MySQL."""
        return self.engine.partition(" ")[0]


@dataclass(frozen=True)
class DatabaseReport:
    """One alias of DATABASES, as the preflight found it."""

    alias: str
    pooled: bool
    label: str  # its name if it is not pooled: SQLite, PostgreSQL, ...
    address: str = ""  # host:port/name, without user and password
    server: str = ""  # host:port, the same for all aliases on one server
    conn_max_age: float | None = 0  # as in the settings
    facts: ServerFacts | None = None
    problem: Finding | None = None
    atomic_requests: bool = False  # as in the settings


@dataclass(frozen=True)
class ProjectReport:
    """The result of the preflight."""

    app: str = ""
    settings_module: str = ""
    load_seconds: float = 0.0
    django: str = ""
    databases: tuple[DatabaseReport, ...] = ()
    warnings: tuple[Finding, ...] = ()
