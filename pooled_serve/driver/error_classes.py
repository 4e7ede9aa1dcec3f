"""The classes of errors, by their codes: mysqlclient's, where PyMySQL has others.

A program that has caught mysqlclient's errors goes on to do so: for a field without a default value
mysqlclient raises an IntegrityError, PyMySQL an OperationalError. The source is
``_mysql_Exception()`` in mysqlclient's ``src/MySQLdb/_mysql.c``, version 2.3.2, as it was found by
raising each code with SIGNAL on MariaDB 10.11 and MySQL 9.7. (It lists 1263, too, by a name that no
header has.)

The classes themselves are PyMySQL's, and what PyMySQL's own connections raise stays as it is.
"""

from __future__ import annotations

import struct
import traceback
from typing import NoReturn

from pymysql.err import (
    DataError,
    Error,
    IntegrityError,
    InternalError,
    MySQLError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from pymysql.protocol import MysqlPacket

from pooled_serve.errors import causes

_CODES: dict[type[Error], tuple[int, ...]] = {
    ProgrammingError: (1007, 1064, 1102, 1103, 1110, 1111, 1112, 1113, 1146, 1149, 1179),
    DataError: (1171, 1230, 1264, 1265, 1406, 1441),
    IntegrityError: (1048, 1062, 1169, 1215, 1216, 1217, 1364, 1451, 1452),
    NotSupportedError: (1196, 1235, 1286, 1289),
}
_CLASSES = {code: kind for kind, codes in _CODES.items() for code in codes}

_code = struct.Struct("<xH").unpack_from  # behind the byte that makes it an error
_STATE_BYTES = 6  # "#" and five characters


CODE_REMEDY = (
    "correct what OPTIONS name in DATABASES (cursorclass, conv), or the engine; if the place is "
    "PyMySQL's, see that a MySQL server is at that HOST and PORT"
)
"""For what :func:`failure_of_code` finds."""


def class_of(code: int) -> type[Error]:
    """Returns the class that mysqlclient has for an error of the server."""
    return _CLASSES.get(code) or (InternalError if code < 1000 else OperationalError)


def failure_of_code(error: Exception) -> str:
    """Returns the exception that ended a connect, with its place, in a line, if it is one of Python
    code: a cursor class, a converter, the engine. Empty for what a server or the system has said.
    """
    if any(isinstance(cause, MySQLError | OSError) for cause in causes(error, context=False)):
        return ""
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


class Packet(MysqlPacket):  # type: ignore[misc]  # PyMySQL has no types
    """A packet that raises its error, if it is one, as mysqlclient does."""

    __slots__ = ()

    def raise_for_error(self) -> NoReturn:
        """Raise the error that the packet contains.

        :raises Error: always.
        """
        data = self.get_all_data()
        (code,) = _code(data)
        state, text = None, data[3:]
        if text.startswith(b"#"):
            state, text = text[1:_STATE_BYTES].decode("ascii", "replace"), text[_STATE_BYTES:]
        raise class_of(code)(code, text.decode("utf-8", "replace"), sqlstate=state)
