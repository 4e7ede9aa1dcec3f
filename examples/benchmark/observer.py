"""Asks the database server what it saw, over one connection that stays open meanwhile.

Run by compare.py with a Python that has PyMySQL. $DATABASE_URL says where and as whom; for each
line on standard input it answers one line of JSON:

    reset   once all other connections are gone, the peak begins anew
    read    {"connections": peak without this one, "round_trips": since reset without its own}
"""

from __future__ import annotations

import json
import os
import sys
import time
from urllib.parse import parse_qs, unquote, urlsplit

from pymysql.connections import Connection

GONE_WITHIN = 20.0  # seconds


class Observer:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = Connection(
            user=parts.username,
            password=unquote(parts.password or ""),
            unix_socket=parse_qs(parts.query)["unix_socket"][0],
        )
        self._round_trips = 0

    def _status(self) -> dict[str, int]:
        names = "'Threads_connected', 'Max_used_connections', 'Questions', 'Com_admin_commands'"
        with self._connection.cursor() as cursor:
            cursor.execute(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})")
            return {name: int(value) for name, value in cursor.fetchall()}

    def reset(self) -> dict[str, int]:
        deadline = time.monotonic() + GONE_WITHIN
        while (status := self._status())["Threads_connected"] > 1:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{status['Threads_connected'] - 1} connections do not go away")
            time.sleep(0.02)
        with self._connection.cursor() as cursor:
            cursor.execute("FLUSH STATUS")
        self._round_trips = self._count(self._status())
        return {}

    def read(self) -> dict[str, int]:
        status = self._status()
        return {
            "connections": status["Max_used_connections"] - 1,
            "round_trips": self._count(status) - self._round_trips - 1,
        }

    @staticmethod
    def _count(status: dict[str, int]) -> int:
        """A ping is no question, but an administrator's command."""
        return status["Questions"] + status["Com_admin_commands"]


def main() -> None:
    observer = Observer(os.environ["DATABASE_URL"])
    for line in sys.stdin:
        answer = observer.reset() if line.strip() == "reset" else observer.read()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
