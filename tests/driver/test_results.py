"""Results read in bulk are PyMySQL's own, to the byte: on recorded responses, without a server."""

from __future__ import annotations

import datetime
import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pymysql.connections import Connection
from pymysql.constants import FIELD_TYPE
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor
from pymysql.err import MySQLError

from pooled_serve.driver import buffer, results
from pooled_serve.driver.columns import Columns, KnownColumns
from pooled_serve.driver.results import BulkConnection
from support.responses import (
    CONVERSIONS,
    TWICE,
    Interrupt,
    Wire,
    error,
    packet,
    packets,
    play,
    recorded,
)
from support.torture import torture

RESPONSES = recorded()
SMALL = [response for response in RESPONSES if len(response.data) < 1200]
CURSORS = [Cursor, DictCursor, SSCursor, SSDictCursor]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> KnownColumns:
    """Those of this test alone, none at first."""
    known = KnownColumns()
    monkeypatch.setattr(results, "known", known)
    return known


def outcome(connection: Any, cursor: Any = Cursor) -> list[str]:
    """All that can be learned from a response, as text: types count, and so does 1.0 or 1."""
    told: list[Any] = []
    unbuffered = issubclass(cursor, SSCursor)
    reader = cursor(connection)
    try:
        connection._affected_rows = connection._read_query_result(unbuffered=unbuffered)
        reader._executed = "recorded"
        while True:
            reader._do_get_result()
            rows = reader.fetchall()
            told.append([rows if unbuffered else list(rows), reader.description, reader.rowcount])
            told.append([reader.lastrowid, reader.warning_count, connection.server_status])
            result = reader._result
            told.append([result.message, result.field_count, result.has_next, result.affected_rows])
            told.append([str(vars(field)) for field in getattr(result, "fields", [])])
            if not result.has_next:
                break
            reader._clear_result()
            connection.next_result(unbuffered=unbuffered)
    except MySQLError as error:
        told.append([type(error), error.args])
        told.append(connection.open and connection._next_seq_id)
    except Exception as error:  # nonsense, to which no reader has a good answer
        told.append(type(error))
    else:
        told.append(connection._next_seq_id)
    finally:
        # Unbuffered ones would read on when they are forgotten.
        for result in filter(None, (reader._result, connection._result)):
            result.unbuffered_active = False
        reader.connection = None
    return [repr(item) for item in told]


def is_error(told: list[str]) -> bool:
    return told[-1].startswith(("<class", "False"))


def assert_equal(data: bytes, piece: int = 1 << 30, cursor: Any = Cursor, **options: Any) -> None:
    expected = outcome(play(Connection, Wire(data, piece), **options), cursor)
    for _ in range(2):  # the second time the columns are known
        connection = play(BulkConnection, Wire(data, piece), **options)
        found = outcome(connection, cursor)
        if expected[-1].startswith("<class") and is_error(found):
            continue  # of several things that are wrong, each may see another first
        if found != expected:  # pytest would take minutes to compare what is that long
            pairs = zip(found, expected, strict=False)
            one, other = next((pair for pair in pairs if pair[0] != pair[1]), ("less", "or more"))
            raise AssertionError(f"{one[:1000]}\nis not PyMySQL's\n{other[:1000]}\n{data[:300]!r}")


# --- Recorded responses ------------------------------------------------------------------------


@pytest.mark.parametrize("cursor", CURSORS)
def test_what_servers_said(cursor: Any) -> None:
    for response in RESPONSES:
        assert_equal(response.data, cursor=cursor, charset=response.charset)


@pytest.mark.parametrize("conversions", CONVERSIONS)
@pytest.mark.parametrize("use_unicode", [True, False], ids=["str", "bytes"])
def test_what_converters_make_of_it(conversions: str, use_unicode: bool) -> None:
    for response in RESPONSES:
        assert_equal(
            response.data,
            charset=response.charset,
            use_unicode=use_unicode,
            conv=CONVERSIONS[conversions],
        )


@pytest.mark.parametrize("charset", ["ascii", "latin1", "utf8mb4", "gbk", "utf8mb3"])
def test_text_in_another_charset_than_the_connection_expects(charset: str) -> None:
    for response in RESPONSES:
        assert_equal(response.data, charset=charset)


@pytest.mark.parametrize("piece", [1, 2, 7, 1447])
def test_pieces(piece: int) -> None:
    for response in RESPONSES:
        if len(response.data) < 20_000 * piece:
            assert_equal(response.data, piece, charset=response.charset)


def test_cut_at_each_byte() -> None:
    for response in SMALL:
        for end in range(len(response.data)):
            assert_equal(response.data[:end], charset=response.charset)


def test_a_wrong_number_on_each_packet() -> None:
    for response in SMALL:
        numbered = response.packets()
        for index, sent in enumerate(numbered):
            for wrong in {0, sent[3] + 1 & 255, 255} - {sent[3]}:
                broken = sent[:3] + bytes([wrong]) + sent[4:]
                data = b"".join([*numbered[:index], broken, *numbered[index + 1 :]])
                assert_equal(data, charset=response.charset)


def test_an_error_in_place_of_each_packet() -> None:
    for response in SMALL:
        numbered = response.packets()
        for index, sent in enumerate(numbered):
            data = b"".join(numbered[:index]) + error(sent[3])
            assert_equal(data, charset=response.charset)
            assert_equal(data, piece=5, charset=response.charset)


def test_a_connection_goes_on_after_an_error_among_the_rows() -> None:
    response = next(r for r in RESPONSES if r.statement.startswith("SELECT id, words"))
    numbered = response.packets()
    data = b"".join(numbered[:-2]) + error(numbered[-2][3])
    wire = Wire(data + response.data)
    connection = play(BulkConnection, wire)
    with pytest.raises(MySQLError):
        connection._read_query_result()
    connection._next_seq_id = 1
    connection._read_query_result()
    assert len(connection._result.rows) == len(numbered) - 8 > 1
    assert connection.open
    assert not connection.unread_bytes()


def test_packets_that_are_empty_or_odd() -> None:
    for response in SMALL:
        numbered = response.packets()
        for index, sent in enumerate(numbered):
            odd = [sent[4:-1], sent[4:] + b"x", sent[4:] + b"\0" * 9, b"\xfe" + sent[4:]]
            for payload in [b"", b"\xfe", b"\xfb", b"\xfc", b"\1", *odd]:
                changed = [*numbered[:index], packet(sent[3], payload), *numbered[index + 1 :]]
                assert_equal(b"".join(changed), charset=response.charset)


@given(st.data())
def test_responses_with_bytes_changed(data: st.DataObject) -> None:
    response = data.draw(st.sampled_from(SMALL))
    changed = bytearray(response.data)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 251, 254, 255])))
    assert_equal(
        bytes(changed), data.draw(st.sampled_from([1 << 30, 11])), charset=response.charset
    )


@pytest.mark.parametrize("use", [Cursor, SSCursor])
def test_whatever_interrupts_a_receive_closes_the_socket(use: Any) -> None:
    for response in SMALL:
        for known, piece in itertools.product([False, True], [3, 400]):
            if known:
                outcome(play(BulkConnection, Wire(response.data)))
            for receive in itertools.count(1):
                wire = Wire(response.data, piece, receive)
                connection = play(BulkConnection, wire)
                try:
                    outcome(connection, use)
                except Interrupt:
                    assert not connection.open
                    assert wire.closed
                    assert not connection.unread_bytes()
                else:
                    break
            assert receive > 1


# --- Rows --------------------------------------------------------------------------------------


def column(name: bytes, kind: int, charset: int = 45, flags: int = 0, decimals: int = 0) -> bytes:
    names = b"".join(bytes([len(n)]) + n for n in (b"def", b"app", b"t", b"t", name, name))
    rest = charset.to_bytes(2, "little") + (80).to_bytes(4, "little") + bytes([kind])
    return names + b"\x0c" + rest + flags.to_bytes(2, "little") + bytes([decimals]) + b"\0\0"


def result_set(
    columns: list[bytes], rows: list[bytes], number: int = 1, status: int = 2, warnings: int = 0
) -> bytes:
    """As a server writes it, large rows in several packets."""
    counts = warnings.to_bytes(2, "little") + status.to_bytes(2, "little")
    said = [bytes([len(columns)]), *columns, b"\xfe\0\0\2\0", *rows, b"\xfe" + counts]
    data = bytearray()
    for payload in said:
        while True:
            part, payload = payload[:0xFFFFFF], payload[0xFFFFFF:]
            data += packet(number, part)
            number += 1
            if len(part) < 0xFFFFFF:
                break
    return bytes(data)


def values(*row: bytes | None) -> bytes:
    """A row."""
    said = bytearray()
    for value in row:
        if value is None:
            said += b"\xfb"
        elif len(value) < 251:
            said += bytes([len(value)]) + value
        elif len(value) < 1 << 16:
            said += b"\xfc" + len(value).to_bytes(2, "little") + value
        elif len(value) < 1 << 24:
            said += b"\xfd" + len(value).to_bytes(3, "little") + value
        else:
            said += b"\xfe" + len(value).to_bytes(8, "little") + value
    return bytes(said)


INT = column(b"n", FIELD_TYPE.LONG)
TEXT = column(b"s", FIELD_TYPE.VAR_STRING)
BLOB = column(b"b", FIELD_TYPE.BLOB, charset=63)
MOMENT = column(b"m", FIELD_TYPE.DATETIME)
DAY = column(b"d", FIELD_TYPE.DATE)
CLOCK = column(b"c", FIELD_TYPE.TIME)


@pytest.mark.parametrize("size", [0, 250, 251, 252, 253, 254, 255, 256, 65535, 65536])
def test_lengths_at_which_their_form_changes(size: int) -> None:
    rows = [
        values(b"1", b"x" * size, b"\xfb" * size),
        values(b"2", None, b""),
        values(b"3", b"", b""),
    ]
    assert_equal(result_set([INT, TEXT, BLOB], rows * 3))


@pytest.mark.parametrize("size", [0xFFFFFF - 10, 0xFFFFFF - 9, 0xFFFFFF, 2 * 0xFFFFFF + 5])
def test_rows_beyond_what_a_packet_takes(size: int) -> None:
    first = values(b"1", b"x")
    large = values(b"2", b"y" * size)
    data = result_set([INT, BLOB], [first, large, first])
    connection = play(BulkConnection, Wire(data))
    connection._read_query_result()
    assert connection._result.rows == ((1, b"x"), (2, b"y" * size), (1, b"x"))
    assert not connection.unread_bytes()


def test_rows_that_leave_out_columns_or_have_more() -> None:
    row, short, none, long = (
        values(b"1", b"a", b"b"),
        values(b"2"),
        values(b"3", None),
        values(b"4", b"abcd"),
    )
    full = values(b"9", b"x", b"\1\1", b"more")
    for rows in itertools.product([row, short, none, long, full], repeat=3):
        assert_equal(result_set([INT, TEXT, BLOB], list(rows)))


def test_statements_without_rows() -> None:
    def number(value: int | None) -> bytes:
        if value is None:
            return b"\xfb"
        return (
            values(b"x" * 300)[:1] + value.to_bytes(2, "little") if value > 250 else bytes([value])
        )

    large = [b"\xfd\1\2\3", b"\xfe\1\2\3\4\5\6\7\x08", b"\xff", b"\xfe\1", b""]
    numbers = [*map(number, [0, 1, 250, 251, 65535, None]), *large]
    for affected, key in itertools.product(numbers, repeat=2):
        for tail in [b"\2\0\0\0", b"\3\0\7\0(Rows matched: 1", b"\2\0", b""]:
            assert_equal(packet(1, b"\0" + affected + key + tail))
    more = packet(1, b"\0\1\5\x0a\0\0\0")
    assert_equal(more + packet(2, b"\0\2\0\2\0\1\0"))
    assert_equal(more + result_set([INT], [values(b"1")], number=2))


def test_no_value_can_pass_for_the_end_of_the_columns_or_of_the_rows() -> None:
    ends = [b"\5\0\0%c\xfe\0\0\2\0" % n for n in range(9)]
    rows = [values(b"1", end, end) for end in ends]
    names = [column(b"x" + end, FIELD_TYPE.VAR_STRING) for end in ends]
    assert_equal(result_set([INT, TEXT, BLOB], rows))
    assert_equal(result_set([INT, names[5], names[4]], rows))
    assert_equal(result_set([INT, names[5], names[4]], rows), piece=3)


MOMENTS = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat(" ")),
    st.from_regex(r"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?\Z"),
    st.sampled_from(["0000-00-00 00:00:00", "2024-00-01 00:00:00", "2024-02-30 00:00:00.000000"]),
)
DAYS = st.one_of(st.dates().map(str), st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\Z"))
CLOCKS = st.from_regex(r"\A-?[0-9]{2,3}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?\Z")


@given(
    st.lists(
        st.tuples(
            *(
                st.one_of(st.none(), value.map(str.encode))
                for value in (
                    st.integers().map(str),
                    st.text(),
                    MOMENTS.filter(str.isascii),
                    DAYS,
                    CLOCKS,
                )
            )
        ),
        max_size=12,
    ),
    st.sampled_from(sorted(CONVERSIONS)),
)
def test_values_of_all_kinds(rows: list[Any], conversions: str) -> None:
    data = result_set([INT, TEXT, MOMENT, DAY, CLOCK], [values(*row) for row in rows])
    assert_equal(data, conv=CONVERSIONS[conversions])


def test_dates_are_parsed_by_the_standard_library_also_for_django() -> None:
    """What makes the difference for lists of rows, and is easily lost."""
    for conversions in (None, TWICE):
        connection = play(BulkConnection, Wire(result_set([MOMENT, DAY], [])), conv=conversions)
        connection._read_query_result()
        for (_, convert), kind in zip(
            connection._result._columns._steps, [datetime.datetime, datetime.date], strict=True
        ):
            assert convert.__closure__[1].cell_contents == kind.fromisoformat


def test_a_converter_that_stops_the_iteration_loses_no_rows_quietly() -> None:
    def stop(text: str) -> str:
        if text == "7":
            raise StopIteration
        return text

    data = result_set([INT], [values(b"%d" % n) for n in range(10)])
    connection = play(BulkConnection, Wire(data), conv={FIELD_TYPE.LONG: stop})
    with pytest.raises(RuntimeError, match="a converter raised StopIteration"):
        connection._read_query_result()


@torture
def test_large_results_take_no_more_memory_than_pymysqls() -> None:
    row = values(b"123456", b"some text that is no number", b"2024-01-02 03:04:05.678901")
    many = result_set([INT, TEXT, MOMENT], [row] * 10_000)
    few = result_set([INT, TEXT, BLOB], [values(b"1", b"t", b"b" * 3_000_000)] * 3)
    for data in (many, few):
        peaks = []
        for make in (Connection, BulkConnection):
            wire = Wire(data, 100_000)
            connection = play(make, wire)
            tracemalloc.start()
            connection._read_query_result()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < peaks[0] * 1.05 + 500_000


def test_many_small_pieces_are_not_copied_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet is put together once, however many pieces it comes in."""
    data = result_set([BLOB], [values(b"b" * 4_000_000)])
    wire = Wire(data, 1000)
    connection = play(BulkConnection, wire)
    fills = []
    fill = buffer.ReadBuffer.fill

    def counted(self: Any, size: int) -> None:
        fills.append(size)
        fill(self, size)

    monkeypatch.setattr(buffer.ReadBuffer, "fill", counted)
    connection._read_query_result()
    assert len(connection._result.rows[0][0]) == 4_000_000
    assert wire.receives > 4000
    assert len(fills) < 20


# --- Columns that are known --------------------------------------------------------------------


def read(data: bytes, **options: Any) -> Any:
    connection = play(BulkConnection, Wire(data), **options)
    connection._read_query_result()
    return connection


def test_columns_are_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Columns] = []
    init = Columns.__init__

    def counted(self: Columns, result: Any, connection: Any) -> None:
        made.append(self)
        init(self, result, connection)

    monkeypatch.setattr(Columns, "__init__", counted)
    for response in SMALL:
        for _ in range(3):
            outcome(play(BulkConnection, Wire(response.data), charset=response.charset))
    blocks = {columns.key for columns in made}
    assert len(made) == len(blocks) > 20


def test_decoders_that_a_program_changes_count_at_once_and_for_it_alone() -> None:
    data = result_set([INT, TEXT], [values(b"1", b"a")])
    mine, others = read(data), read(data)
    assert mine._result.rows == others._result.rows == ((1, "a"),)

    def again(connection: Any) -> Any:
        connection._sock = Wire(data)
        connection._rfile = connection._sock.makefile("rb")
        connection._next_seq_id = 1
        connection._read_query_result()
        return connection._result.rows

    mine.decoders[FIELD_TYPE.LONG] = lambda text: f"mine {text}"
    for _ in range(3):
        assert again(mine) == (("mine 1", "a"),)
        assert again(others) == ((1, "a"),)
    del mine.decoders[FIELD_TYPE.LONG]
    assert again(mine) == (("1", "a"),)
    assert again(others) == ((1, "a"),)
    others.use_unicode = False
    assert again(others) == ((1, b"a"),)
    assert again(mine) == (("1", "a"),)
    mine.encoding = "latin1"
    assert again(mine) == (("1", "a"),)


def test_an_encoding_that_changes_counts_at_once() -> None:
    data = result_set([column("ñ".encode(), FIELD_TYPE.VAR_STRING)], [values("é".encode())])
    for charset, name, text in [
        ("utf8mb4", "ñ", "é"),
        ("latin1", "Ã±", "Ã©"),
        ("utf8mb4", "ñ", "é"),
    ]:
        connection = read(data, charset=charset)
        assert connection._result.rows == ((text,),)
        assert connection._result.description[0][0] == name


def test_what_one_request_changes_of_a_result_the_next_does_not_see() -> None:
    data = result_set([INT, TEXT], [values(b"1", b"a")])
    read(data)
    first = read(data)._result
    first.fields[0].name = "changed"
    first.fields.clear()
    for kept in (first.description, first.description[0], first.converters, first.rows):
        assert isinstance(kept, tuple)
    second = read(data)._result
    assert [field.name for field in second.fields] == ["n", "s"]
    assert second.fields is second.fields


def test_known_columns_are_bounded(monkeypatch: pytest.MonkeyPatch, known: KnownColumns) -> None:
    monkeypatch.setattr(KnownColumns, "MAX_BYTES", 20_000)
    most = 0
    for number in range(500):
        data = result_set([column(b"c%d" % number, FIELD_TYPE.LONG), TEXT], [values(b"1", b"a")])
        for _ in range(2):
            assert read(data)._result.description[0][0] == f"c{number}"
        most = max(most, len(known._known))
        assert known._size <= 20_000
        assert known._size >= sum(len(block) for block, *_ in known._known)
    assert 5 < most < 50


def test_blocks_that_are_large_are_not_kept(known: KnownColumns) -> None:
    names = [column(b"%03d" % n + b"x" * 240, FIELD_TYPE.LONG) for n in range(250)]
    assert_equal(result_set(names, [values(*[b"1"] * 250)]))
    assert not known._known


def test_the_estimate_of_what_known_columns_take_is_no_dream(known: KnownColumns) -> None:
    blocks = [
        result_set([column(b"%d_%d" % (block, n), FIELD_TYPE.LONG) for n in range(10)], [])
        for block in range(300)
    ]
    read(blocks[0])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for block in blocks:
        read(block)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert known._size * 0.5 < after - before < known._size * 1.2


# --- Both ways of reading ----------------------------------------------------------------------


def test_what_one_way_has_read_ahead_the_other_finds() -> None:
    ok = packet(1, b"\0\5\7\2\0\1\0")
    rows = result_set([INT, TEXT], [values(b"%d" % n, b"a") for n in range(5)])
    connection = play(BulkConnection, Wire((ok + rows) * 4))
    read_ok: Callable[[], Any] = connection._read_ok_packet
    for _ in range(2):
        assert (read_ok().affected_rows, connection._result) == (5, None)
        connection._next_seq_id = 1
        assert connection._read_query_result() == 5
        connection._next_seq_id = 1
        assert connection._read_query_result(unbuffered=True) == 5
        connection._next_seq_id = 1
        connection._read_query_result(unbuffered=True)
        result = connection._result
        assert [result._read_rowdata_packet_unbuffered() for _ in range(6)][3:] == [
            (3, "a"),
            (4, "a"),
            None,
        ]
        connection._next_seq_id = 1
        connection._result = None
    assert not connection.unread_bytes()


def test_bytes_that_nobody_asked_for_are_seen() -> None:
    rows = result_set([INT], [values(b"1")])
    connection = play(BulkConnection, Wire(rows + error(0, 1053)))
    connection._read_query_result()
    assert connection.unread_bytes() == len(error(0, 1053))
    assert len(list(packets(rows))) == 5
