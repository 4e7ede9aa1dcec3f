"""Buffered results, read in bulk: the same values as PyMySQL's, in less than half of the time.

PyMySQL reads each packet in two parts, parses the description of each column anew, and makes three
calls for each value, with a regular expression for each date. Here

* a response is received in one piece, or a few, and packets are found in it by their lengths;
* columns are looked up by the bytes that describe them;
* rows are split first and converted afterwards, column by column, by functions written in C.

Only the common case is handled here: whole rows, the packet that ends them, and the one of a
statement without rows. Everything else (errors, packets out of sequence, rows of 16 MB or of odd
shape, LOCAL INFILE, unbuffered cursors) stays in the buffer for PyMySQL, which reads it there as
if it had just arrived.

The protocol: https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query.html, with
EOF packets, as PyMySQL asks for. Knows nothing of the pool nor of gevent, and could be upstream's.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Any, NoReturn

from pymysql.connections import Connection, MySQLResult
from pymysql.constants.SERVER_STATUS import SERVER_MORE_RESULTS_EXISTS
from pymysql.err import MySQLError, OperationalError
from pymysql.protocol import MysqlPacket

from pooled_serve.driver.buffer import ReadBuffer
from pooled_serve.driver.columns import (
    EOF_STARTS,
    HEADER_BYTES,
    MAX_COLUMNS,
    MAX_PACKET_LEN,
    Columns,
    Row,
    converted,
    header,
    known,
)
from pooled_serve.driver.error_codes import CR_SERVER_LOST
from pooled_serve.tuning import switches

OK, ERROR, EOF = 0x00, 0xFF, 0xFE  # the first byte of such packets

_counts = struct.Struct("<hh").unpack_from  # warnings and status; signed, as in PyMySQL
_COUNTS_BYTES = 4
_ok_counts = struct.Struct("<HH").unpack_from  # status and warnings, as in PyMySQL

_OK_BYTES = 7  # at least, in such a packet

_LOST = "Lost connection to MySQL server during query"  # as PyMySQL says it

_enabled = switches.on("results")


class BulkConnection(Connection):  # type: ignore[misc]  # PyMySQL has no types
    """A PyMySQL connection that reads buffered results in bulk."""

    buffer: Any = None
    packet: Any = MysqlPacket
    """The class of packets that are not read in bulk."""
    unconverted: Exception | None = None
    """The error of a converter that is about to be raised: it leaves nothing unread."""
    _sock: Any
    _next_seq_id: int
    _current_timeout: float | None

    @property
    def _rfile(self) -> Any:
        return self.buffer

    @_rfile.setter
    def _rfile(self, file: Any) -> None:
        if file is not None and _enabled:
            file.close()  # an open file would keep the socket open
            file = ReadBuffer(self._sock)
        self.buffer = file

    def unread_bytes(self) -> int:
        """Returns how many bytes were received but not read. Between statements there must be
        none."""
        buffer = self.buffer
        return len(buffer.data) - buffer.position if isinstance(buffer, ReadBuffer) else 0

    def all_read(self) -> bool:
        """Whether all that was received has been read. False if that cannot be known: a file reads
        ahead."""
        return isinstance(self.buffer, ReadBuffer) and not self.unread_bytes()

    def want(self, size: int) -> None:
        """Receive until that many bytes are unread.

        :raises OperationalError: 2013, the connection is lost. Then, and when the wait is
            interrupted by any other exception, the socket is closed.
        """
        if self._current_timeout != self._read_timeout:
            self._sock.settimeout(self._read_timeout)
            self._current_timeout = self._read_timeout
        buffer = self.buffer
        try:
            if buffer.position == len(buffer.data):
                self.wait_for_answer()
            buffer.fill(size)
        except BaseException as error:
            self.interrupted(error)
            self._force_close()
            if isinstance(error, OSError):
                raise OperationalError(CR_SERVER_LOST, f"{_LOST} ({error})") from error
            raise
        if len(buffer.data) < size:
            self._force_close()
            raise OperationalError(CR_SERVER_LOST, _LOST)

    def wait_for_answer(self) -> None:
        """Overridden where waiting costs less than an attempt to receive what is not there yet."""

    def interrupted(self, error: BaseException) -> None:
        """Overridden to note why the socket is closed in the middle of an answer."""

    def _read_packet(self, packet_type: Any = None) -> Any:
        packet_type = packet_type or self.packet
        buffer = self.buffer
        if isinstance(buffer, ReadBuffer):
            if buffer.position == len(buffer.data):
                self.want(HEADER_BYTES)
            begin = buffer.position + HEADER_BYTES
            if begin < len(buffer.data):
                size = header(buffer.data, begin - HEADER_BYTES)[0] ^ self._next_seq_id << 24
                end = begin + size
                if (
                    0 < size < MAX_PACKET_LEN
                    and end <= len(buffer.data)
                    and buffer.data[begin] != ERROR
                ):
                    buffer.position = end
                    self._next_seq_id = self._next_seq_id + 1 & 255
                    return packet_type(buffer.data[begin:end], self.encoding)
        return super()._read_packet(packet_type)

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        if unbuffered:
            return super()._read_query_result(unbuffered)
        result = self._read_result()
        if result.error is not None:
            self._raise_unconverted(result)
        return result.affected_rows

    def _read_result(self, error: Exception | None = None) -> PlainResult:
        """Read a result, without its values if one before it could not be converted."""
        self._result = None
        result = Result(self) if _enabled else PlainResult(self)
        if error is not None:
            result.error = error
        result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        return result

    def _raise_unconverted(self, result: PlainResult) -> NoReturn:
        """Raise a converter's error, once all of the answer is read: the next statement would take
        the rest for its own."""
        error = result.error
        assert error is not None
        while result.has_next:
            try:
                result = self._read_result(error)
            except MySQLError:
                if self._sock is None:
                    raise
                break  # the statement has failed, and nothing follows
        if self._result is not None:
            self._result.error = None  # it holds on to all that its traceback has seen
        self.unconverted = error
        raise error


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of one to nine bytes, and where it ends; beyond the data if it is none."""
    first = data[at]
    if first < 251:
        return first, at + 1
    if first in (251, 255):
        return 0, len(data)
    end = at + (first - 249 if first < 254 else 9)
    return int.from_bytes(data[at + 1 : end], "little"), end


class PlainResult(MySQLResult):  # type: ignore[misc]
    """The buffered result of a statement, read to its end also if a value cannot be converted."""

    converters: Any
    error: Exception | None = None
    """The first of a converter. Values behind it are not converted."""

    def _read_row_from_packet(self, packet: Any) -> Row:
        values = []
        for _ in self.converters:
            try:
                values.append(packet.read_length_coded_string())
            except IndexError:  # the columns at the end may be left out
                break
        try:
            if self.error is not None:
                return ()
            pairs = zip(self.converters, values, strict=False)
            # Not map(), which takes a converter's StopIteration for the end of the row.
            return tuple([converted(how, value) for how, value in pairs])
        except Exception as error:
            self.error = error
            return ()


class Result(PlainResult):
    """One that is read in bulk."""

    connection: Any
    _columns: Columns

    def read(self) -> None:
        """Read it all. An exception during a wait closes the socket."""
        try:
            if self._recognize():
                self._read_rowdata_packet()
            elif not self._read_ok():
                super().read()
        finally:
            self.connection = None

    @cached_property
    def fields(self) -> Any:
        """The packets that describe the columns."""
        return self._columns.fields()

    # --- No rows -------------------------------------------------------------------------------

    def _read_ok(self) -> bool:
        """Read the answer to a statement that has no rows. Returns False, with nothing read, if
        this is another one, or has not arrived as a whole."""
        connection = self.connection
        buffer = connection.buffer
        if buffer is None:
            return False
        data, start = buffer.data, buffer.position + HEADER_BYTES
        if start >= len(data) or data[start] != OK:
            return False
        end = start + (header(data, start - HEADER_BYTES)[0] ^ connection._next_seq_id << 24)
        if not start + _OK_BYTES <= end <= len(data):  # out of sequence, it has no such length
            return False
        affected, at = _number(data, start + 1)
        key, at = _number(data, at) if at < end else (0, end)
        if at + _COUNTS_BYTES > end:
            return False
        self.affected_rows, self.insert_id = affected, key
        self.server_status, self.warning_count = _ok_counts(data, at)
        self.has_next = self.server_status & SERVER_MORE_RESULTS_EXISTS
        self.message = data[at + _COUNTS_BYTES : end]
        buffer.position = end
        connection._next_seq_id = connection._next_seq_id + 1 & 255
        return True

    # --- Columns -------------------------------------------------------------------------------

    def _recognize(self) -> bool:
        """Skip the descriptions of the columns if they are known. Returns False, with nothing read,
        if they are not."""
        connection = self.connection
        buffer = connection.buffer
        if buffer is None:
            return False
        if buffer.position == len(buffer.data):
            connection.want(HEADER_BYTES)
        begin = buffer.position + HEADER_BYTES
        count = buffer.data[begin] if begin < len(buffer.data) else 0
        if not 1 <= count <= MAX_COLUMNS:
            return False
        last = connection._next_seq_id + count + 1
        end = self._find_end(last)
        if not end and self._receive_columns(count):
            end = self._find_end(last)
        if not end:
            return False
        # The bytes that end a block may also occur inside one. But no block is the beginning of
        # another: each states its number of packets, and each packet its length. And the packets
        # of a block are numbered in sequence, so the first has the expected number.
        block = buffer.data[buffer.position : end]
        columns = known.get((block, connection.encoding, connection.use_unicode))
        if columns is None or not columns.hold_for(connection.decoders):
            return False
        buffer.position = end + _COUNTS_BYTES
        connection._next_seq_id = last + 1 & 255
        self._columns = columns
        self.field_count = count
        self.description = columns.description
        self.converters = columns.converters
        return True

    def _find_end(self, last: int) -> int:
        """Returns where the block of descriptions ends, without warnings and status, if its last
        packet has that sequence number; 0 if that packet is not in the buffer."""
        buffer = self.connection.buffer
        start = EOF_STARTS[last & 255]
        end: int = buffer.data.find(start, buffer.position) + len(start)
        return end if len(start) <= end <= len(buffer.data) - _COUNTS_BYTES else 0

    def _receive_columns(self, count: int) -> bool:
        """Receive the packet with the number of columns, their ``count`` descriptions and the EOF
        packet. Returns False if the server sends anything else."""
        connection = self.connection
        buffer = connection.buffer
        offset = 0
        for number in range(connection._next_seq_id, connection._next_seq_id + count + 2):
            connection.want(offset + HEADER_BYTES)
            size = header(buffer.data, buffer.position + offset)[0] ^ (number & 255) << 24
            if not 0 < size < MAX_PACKET_LEN:
                return False
            offset += HEADER_BYTES + size
            connection.want(offset)
            if buffer.data[buffer.position + offset - size] == ERROR:
                return False
        return True

    def _get_descriptions(self) -> None:
        """Read the descriptions as PyMySQL does, and cache them."""
        super()._get_descriptions()
        self._columns = Columns(self, self.connection)
        known.add(self._columns)

    # --- Rows ----------------------------------------------------------------------------------

    def _read_rowdata_packet(self) -> None:
        connection = self.connection
        buffer = connection.buffer
        rows: list[Row] = []
        while True:
            self._read_ordinary_rows(rows)
            begin = buffer.position
            unread = len(buffer.data) - begin
            if unread < HEADER_BYTES:
                connection.want(HEADER_BYTES)
                continue
            size = header(buffer.data, begin)[0] ^ connection._next_seq_id << 24
            if size < MAX_PACKET_LEN and unread < HEADER_BYTES + size:
                connection.want(HEADER_BYTES + size)
                continue
            if size == 5 and buffer.data[begin + HEADER_BYTES] == EOF:
                self.warning_count, status = _counts(buffer.data, begin + HEADER_BYTES + 1)
                self.has_next = status & SERVER_MORE_RESULTS_EXISTS
                buffer.position += HEADER_BYTES + size
                connection._next_seq_id = connection._next_seq_id + 1 & 255
                break
            packet = connection._read_packet()
            if self._check_packet_is_eof(packet):
                break
            rows.append(self._read_row_from_packet(packet))
        if buffer.position == len(buffer.data):
            buffer.data, buffer.position = b"", 0  # or idle connections would keep the memory
        self.affected_rows = len(rows)
        self.rows = tuple(rows)

    def _read_ordinary_rows(self, rows: list[Row]) -> None:
        """Read the complete rows in the buffer, up to the first packet that is no ordinary row."""
        connection = self.connection
        buffer = connection.buffer
        data, position, number = buffer.data, buffer.position, connection._next_seq_id
        count = self.field_count
        values: list[bytes | None] = []
        nulls: set[int] = set()  # indexes of columns with NULLs
        append = values.append
        columns = range(count)
        limit = len(data)
        while position + HEADER_BYTES < limit:
            size = header(data, position)[0] ^ number << 24  # checks the number, too
            at = position + HEADER_BYTES
            end = at + size
            if not 0 < size < MAX_PACKET_LEN or end > limit or data[at] >= EOF:
                break
            try:
                for _ in columns:
                    length = data[at]
                    at += 1
                    if length < 251:
                        append(data[at : (at := at + length)])
                    elif length == 251:
                        nulls.add(len(values) % count)
                        append(None)
                    else:
                        size = length - 250 if length < 254 else 8
                        length = int.from_bytes(data[at : (at := at + size)], "little")
                        append(data[at : (at := at + length)])
            except IndexError:  # the buffer ends with a row that has too few columns
                del values[len(values) - len(values) % count :]
                break
            if at != end:  # MariaDB may leave out columns at the end of a row
                del values[-count:]
                break
            position = end
            number = number + 1 & 255
        buffer.position, connection._next_seq_id = position, number
        if values and self.error is None:
            try:
                self._columns.convert(values, nulls, rows)
            except Exception as error:
                self.error = error
