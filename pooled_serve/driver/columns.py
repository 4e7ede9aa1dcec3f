"""The columns of a result, looked up by the bytes that describe them, and how to convert values.

A server describes each column of each result, nearly always in the same bytes as the last time.
PyMySQL parses each description with 32 calls.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from operator import is_, methodcaller
from types import FunctionType
from typing import Any

from pymysql.connections import MySQLResult
from pymysql.converters import convert_date, convert_datetime, through
from pymysql.protocol import FieldDescriptorPacket

Row = tuple[Any, ...]
Convert = Callable[[Any], Any]

MAX_ROWS_ONE_BY_ONE = 3
"""Up to so many rows, converting row by row is faster than turning the values into columns."""

HEADER_BYTES = 4
"""In front of each packet: three bytes of length, one of sequence number."""

MAX_PACKET_LEN = 0xFFFFFF
"""A packet of this length continues in the next one."""

MAX_COLUMNS = 250
"""Results with more columns are left to PyMySQL: their number takes several bytes."""

EOF_STARTS = tuple(b"\x05\0\0%c\xfe" % number for number in range(256))
"""The first bytes of the EOF packet, by its sequence number. Warnings and status follow."""

header = struct.Struct("<I").unpack_from


class Columns:
    """The meaning of some columns' descriptions, and how to convert their values. Immutable:
    requests share it."""

    __slots__ = ("_decoders", "_steps", "_types", "_whole", "converters", "description", "key")

    def __init__(self, result: MySQLResult, connection: Any) -> None:
        self.description: tuple[Row, ...] = result.description
        self.converters = tuple(result.converters)
        self.key = _block(result, connection), connection.encoding, connection.use_unicode
        self._types = tuple(column[1] for column in self.description)
        self._decoders = tuple(map(connection.decoders.get, self._types))
        self._steps = tuple(_steps(*pair) for pair in self.converters)
        self._whole = tuple(_whole(*steps) for steps in self._steps)

    def hold_for(self, decoders: dict[int, Any]) -> bool:
        """Whether a connection with these decoders converts values as this object does. A program
        may change the decoders of its connection."""
        return all(map(is_, map(decoders.get, self._types), self._decoders))

    def fields(self) -> list[FieldDescriptorPacket]:
        """Returns the descriptions in full, as new objects each time: a caller may change them."""
        block, encoding, _ = self.key
        fields = []
        begin = HEADER_BYTES + 1
        for _ in self._types:
            end = begin + HEADER_BYTES + (header(block, begin)[0] & MAX_PACKET_LEN)
            fields.append(FieldDescriptorPacket(block[begin + HEADER_BYTES : end], encoding))
            begin = end
        return fields

    def convert(self, values: list[bytes | None], nulls: set[int], rows: list[Row]) -> None:
        """Convert values, given row by row, and append the rows to ``rows``.

        :param nulls: the indexes of the columns in which some values are None.
        """
        width = len(self._steps)
        if len(values) <= MAX_ROWS_ONE_BY_ONE * width:
            for begin in range(0, len(values), width):
                row = zip(self._whole, values[begin : begin + width], strict=True)
                rows.append(tuple([v if v is None else convert(v) for convert, v in row]))
            return
        columns: list[Any] = []
        for index, (decode, convert) in enumerate(self._steps):
            column: Any = values[index::width]
            if index in nulls:
                column = map(partial(_unless_none, self._whole[index]), column)
            else:
                if decode is not None:
                    column = map(decode, column)
                if convert is not None:
                    column = map(convert, column)
            columns.append(column)
        before = len(rows)
        # Pulls values through the maps row by row, so converters are called in PyMySQL's order.
        rows.extend(zip(*columns, strict=True))
        if len(rows) - before != len(values) // width:
            raise RuntimeError("a converter raised StopIteration")  # which ends a map silently


class KnownColumns:
    """A cache of :class:`Columns`, by the bytes that describe them and whatever else they depend
    on. Cleared when it is full."""

    MAX_BYTES = 2 * 1024 * 1024
    """Of the whole cache, estimated."""

    MAX_BLOCK_BYTES = 64 * 1024
    """Larger descriptions are not cached. Reading rows dominates the time of such results."""

    BYTES_PER_COLUMN = 400
    """Estimated for the name, the description and the functions; the block comes on top."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, str, bool], Columns] = {}
        self._size = 0
        self.get = self._known.get

    def add(self, columns: Columns) -> None:
        """Cache them, unless they are too large."""
        block = columns.key[0]
        if len(block) > self.MAX_BLOCK_BYTES or len(columns.description) > MAX_COLUMNS:
            return
        if columns.key not in self._known:
            size = len(block) + self.BYTES_PER_COLUMN * len(columns.description)
            if self._size + size > self.MAX_BYTES:
                self._known.clear()
                self._size = 0
            self._size += size
        self._known[columns.key] = columns


known = KnownColumns()


def converted(how: tuple[str | None, Any], data: Any) -> Any:
    """Returns a value as PyMySQL makes it."""
    encoding, converter = how
    if data is not None and encoding is not None:
        data = data.decode(encoding)
    return data if data is None or converter is None else converter(data)


def _block(result: MySQLResult, connection: Any) -> bytes:
    """Returns the bytes that described the columns of a result which was just read: the packet with
    their number, one packet each, and the constant part of the EOF packet."""
    packets = [bytes([result.field_count & 255])]
    packets += [field.get_all_data() for field in result.fields]
    first = connection._next_seq_id - len(packets) - 1
    block = bytearray()
    for number, packet in enumerate(packets, first):
        block += len(packet).to_bytes(3, "little") + bytes([number & 255]) + packet
    block += EOF_STARTS[connection._next_seq_id - 1 & 255]
    return bytes(block)


def _steps(encoding: str | None, converter: Any) -> tuple[Convert | None, Convert | None]:
    """Returns up to two functions that make a value from bytes: PyMySQL's, or faster ones."""
    if _same(converter, through):
        converter = None
    if encoding in (None, "ascii"):
        if converter is int or converter is float:
            return None, converter  # these two parse bytes
        if converter is Decimal and encoding is not None:
            return bytes.decode, converter  # servers send ASCII digits only
        if _same(converter, convert_datetime):
            return None, _quicker(datetime.datetime.fromisoformat, converter)
        if _same(converter, convert_date):
            return None, _quicker(datetime.date.fromisoformat, converter)
    if encoding is None:
        return None, converter
    return bytes.decode if encoding == "utf8" else methodcaller("decode", encoding), converter


def _same(function: Any, other: Any) -> bool:
    """Whether two names refer to the same function of PyMySQL. It may have been imported twice, as
    install_as_MySQLdb() does for Django."""
    return isinstance(function, FunctionType) and function.__code__ == other.__code__


def _quicker(parse: Convert, converter: Convert) -> Convert:
    """Returns a converter that tries ``parse`` first, which is faster and nearly always enough."""

    def convert(value: bytes) -> Any:
        try:
            return parse(value.decode())
        except ValueError:  # 0000-00-00
            return converter(value.decode("ascii"))

    return convert


def _whole(decode: Convert | None, convert: Convert | None) -> Convert:
    """Returns both steps as one function."""
    if decode is None:
        return convert or bytes
    if convert is None:
        return decode
    return lambda value: convert(decode(value))


def _unless_none(convert: Convert, value: bytes | None) -> Any:
    return None if value is None else convert(value)
