"""Turn a database URL into an entry of Django's DATABASES.

mysql://user:password@host:3306/name
mysql://user:password@localhost/name?unix_socket=/run/mysqld/mysqld.sock
sqlite:///relative/path.sqlite3
sqlite:////absolute/path.sqlite3

User, password and name are percent-decoded, so any of them may hold any character.
"""

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def parse(url: str) -> dict[str, Any]:
    """Raise ValueError, which never quotes the password, if the URL is of no known form."""
    parts = urlsplit(url)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "mysql":
        socket = parse_qs(parts.query).get("unix_socket")
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": name,
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            # Django takes a host that begins with a slash for the path of a Unix socket.
            "HOST": socket[0] if socket else parts.hostname or "",
            "PORT": str(parts.port or ""),
        }
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            # Take the write lock at BEGIN: a transaction that reads first and writes later would
            # fail with "database is locked" instead of waiting for its turn.
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    raise ValueError(f"a database URL begins with mysql:// or sqlite:///, not {parts.scheme!r}")
