"""Responses of servers, recorded, and a socket that plays them: results without a server.

    python -m support.responses

in the folder of the tests records them anew, from MariaDB and from MySQL.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql.converters
from pymysql.connections import Connection
from pymysql.constants import CLIENT, FIELD_TYPE

RECORDED = Path(__file__).with_name("responses.json")

COLUMNS = {
    "id": "BIGINT UNSIGNED PRIMARY KEY",
    "tiny": "TINYINT",
    "small": "SMALLINT UNSIGNED",
    "medium": "MEDIUMINT",
    "filled": "INT(8) ZEROFILL",
    "big": "BIGINT",
    "money": "DECIMAL(30,10)",
    "f": "FLOAT",
    "d": "DOUBLE",
    "bit1": "BIT(1)",
    "bits": "BIT(40)",
    "day": "DATE",
    "moment": "DATETIME",
    "moment3": "DATETIME(3)",
    "moment6": "DATETIME(6)",
    "stamp": "TIMESTAMP(6) NULL",
    "clock": "TIME",
    "clock2": "TIME(2)",
    "y": "YEAR",
    "letters": "CHAR(10)",
    "words": "VARCHAR(300)",
    "raw": "BINARY(5)",
    "bytes": "VARBINARY(300)",
    "story": "LONGTEXT",
    "file": "LONGBLOB",
    "choice": "ENUM('a','ö')",
    "some": "SET('x','y','z')",
    "doc": "JSON",
    "place": "GEOMETRY",
}
ROWS = (
    (
        *("18446744073709551615", "-128", "65535", "-8388608", "42", "-9223372036854775808"),
        *("'-12345678901234567890.0123456789'", "1.5", "-2.25e-300", "b'1'", "b'1010101'"),
        *("'2024-02-29'", "'2024-02-29 23:59:59'", "'1000-01-01 00:00:00.5'"),
        *("'9999-12-31 23:59:59.999999'", "'2001-09-09 01:46:40.000001'", "'-838:59:59'"),
        *("'00:00:01.25'", "2155", "'öäü€😀'", "REPEAT('é', 125)", "x'00ff00ff00'"),
        *("REPEAT(x'fb', 251)", "REPEAT('s', 65535)", "REPEAT(x'00', 65536)", "'ö'", "'x,z'"),
        *("""'{"a": [1, "é", null]}'""", "ST_GeomFromText('POINT(1 2)')"),
    ),
    ("2", *["NULL"] * 28),
    (
        *("3", "0", "0", "0", "0", "0", "0", "0", "0", "b'0'", "b'0'", "'0000-00-00'"),
        *("'0000-00-00 00:00:00'", "'2024-01-00 10:00:00'", "'0001-01-01 00:00:00'"),
        *("'0000-00-00 00:00:00'", "'0'", "'100:00:00'", "0", "''", "''", "''", "''", "''"),
        *("''", "''", "''", "'[]'", "ST_GeomFromText('LINESTRING(0 0, 1 1)')"),
    ),
    ("4", "1", *["NULL"] * 18, "REPEAT('w', 250)", "NULL", "REPEAT('b', 252)", *["NULL"] * 6),
)
STATEMENTS = (
    "SELECT 1",
    "SELECT NULL, '', 'é', 0x00ff, 1.5, 1e0, DATE'2024-01-02', TIME'10:11:12', 7 DIV 0",
    "SELECT 1 AS same, 2 AS same, t.tiny, u.tiny FROM t, t AS u LIMIT 3",
    "SELECT * FROM t ORDER BY id",
    "SELECT * FROM t WHERE id = 0",
    "SELECT id, words, moment6, money, day FROM t, (SELECT 1 UNION SELECT 2 UNION SELECT 3) AS u",
    "SELECT CAST('[1]' AS CHAR), JSON_ARRAY(1, 'é'), GROUP_CONCAT(letters) FROM t",
    "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(250)),
    "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(251)),
    "SELECT " + ", ".join(f"'{n}' AS c{n}" for n in range(300)),
    "SELECT 1; SELECT 'two', 2; UPDATE t SET tiny = 1 WHERE id = 3; SELECT 4 WHERE 1 = 0",
    "SELECT 1 FROM t WHERE (SELECT id FROM t)",
    "SELECT 1; SELECT nonsense",
    "INSERT INTO k (word) VALUES ('a'), ('b')",
    "INSERT IGNORE INTO k (id, word) VALUES (1, 'too long a word for this')",
    "UPDATE t SET tiny = tiny + 0",
    "DO 1",
    "nonsense",
    "SHOW WARNINGS",
    "EXPLAIN SELECT * FROM t",
    "SELECT seq FROM (WITH RECURSIVE n AS (SELECT 1 AS seq UNION ALL SELECT seq + 1 FROM n"
    " WHERE seq < 600) SELECT seq FROM n) AS n",
)


@dataclass(frozen=True)
class Response:
    """What a server said to a statement, all of it."""

    server: str
    charset: str
    statement: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.server}, {self.charset}: {self.statement[:60]}"

    def packets(self) -> list[bytes]:
        """With their headers."""
        return list(packets(self.data))


def packets(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        end = position + 4 + int.from_bytes(data[position : position + 3], "little")
        yield data[position:end]
        position = end


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number & 255]) + payload


def error(number: int, code: int = 1317, text: bytes = b"Query execution was interrupted") -> bytes:
    return packet(number, b"\xff" + struct.pack("<H", code) + b"#70100" + text)


def second_copy() -> Any:
    """PyMySQL's converters as Django has them after install_as_MySQLdb(): imported again."""
    spec = importlib.util.spec_from_file_location("pymysql.again", pymysql.converters.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TWICE = second_copy().conversions
CONVERSIONS: dict[str, Any] = {
    "PyMySQL's": None,
    "imported twice": TWICE,
    "Django's": {**TWICE, FIELD_TYPE.TIME: lambda text: text and f"time {text}"},
    "none": {},
    "own": {
        **pymysql.converters.conversions,
        FIELD_TYPE.DATETIME: lambda text: ["moment", text],
        FIELD_TYPE.VAR_STRING: str.upper,
        FIELD_TYPE.BLOB: len,
        FIELD_TYPE.LONGLONG: str,
        FIELD_TYPE.JSON: repr,
    },
}


class Wire:
    """A socket from which a response comes, in pieces, and then its end."""

    def __init__(self, data: bytes, piece: int = 1 << 30, interrupt_at: int | None = None) -> None:
        self._data = memoryview(data)
        self._piece = piece
        self._interrupt_at = interrupt_at
        self.receives = 0
        self.closed = False

    def recv(self, size: int) -> bytes:
        self.receives += 1
        if self.receives == self._interrupt_at:
            raise Interrupt
        size = min(size, self._piece)
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def left(self) -> int:
        return len(self._data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Raw(self))

    def settimeout(self, seconds: float | None) -> None:
        pass

    def gettimeout(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


class Interrupt(BaseException):
    """Comes while somebody waits for the server, as GreenletExit does."""


class _Raw(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._wire.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def play(make: Callable[..., Any], wire: Wire, **options: Any) -> Any:
    """A connection that has just sent a statement, and gets the answer from there."""
    connection = make(user="nobody", defer_connect=True, ssl_disabled=True, **options)
    connection._sock = wire
    connection._current_timeout = connection._read_timeout
    connection._rfile = wire.makefile("rb")
    connection._next_seq_id = 1
    connection.server_status = 2
    return connection


def recorded() -> list[Response]:
    return [
        Response(server, charset, statement, zlib.decompress(base64.b85decode(data)))
        for server, charset, statement, data in json.loads(RECORDED.read_text())
    ]


class _Recorder:
    """A socket that keeps what comes."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.data = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        piece: bytes = self._sock.recv(size)
        self.data += piece
        return piece


def record() -> None:
    """Write the file anew."""
    from support import servers

    found = []
    for name, start in (("MariaDB", servers.mariadb), ("MySQL", servers.mysql)):
        with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as server:
            arguments = server.create_database().connect_args()
            for charset in ("utf8mb4", "latin1"):
                connection = Connection(
                    **arguments,
                    charset=charset,
                    ssl_disabled=True,
                    sql_mode="",
                    autocommit=True,
                    client_flag=CLIENT.MULTI_STATEMENTS,
                )
                prepare(connection)
                recorder = _Recorder(connection._sock)
                connection._rfile = io.BufferedReader(_Raw(recorder))  # type: ignore[arg-type]
                for statement in STATEMENTS:
                    recorder.data = b""
                    try:
                        connection.query(statement)
                        while connection._result.has_next:
                            connection.next_result()
                    except connection.Error:
                        pass
                    data = base64.b85encode(zlib.compress(recorder.data, 9)).decode()
                    found.append((name, charset, statement, data))
                connection.close()
    RECORDED.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n")


def prepare(connection: Any) -> None:
    """Make the tables."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS t, k")
        columns = ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items())
        cursor.execute(f"CREATE TABLE t ({columns}) CHARACTER SET utf8mb4")
        for row in ROWS:
            values = ", ".join(row)
            if connection.charset == "latin1":
                values = values.replace("😀", "")
            cursor.execute(f"INSERT IGNORE INTO t VALUES ({values})")
        cursor.execute("CREATE TABLE k (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(10))")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    record()
