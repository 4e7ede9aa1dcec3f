"""Views for test_random_requests.py: a request does what a list of steps says.

Served as part of a project of its own; `tests` and `pooled_serve.backend.patch` are all it needs.
Some requests only look: what they find at their beginning must be what a fresh process shows,
whatever the requests before them did.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import gevent
import gevent.lock
from django.db import connection, connections, transaction
from django.db.utils import ConnectionHandler
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from pymysql.cursors import DictCursor, SSCursor

from pooled_serve.backend import patch

HOME: str = ""  # the database of "default"; OTHER is that of "replica". Filled in by the test.
OTHER: str = ""

COMMITTED, UNDONE, EITHER, ANY = "2", "0", "0 2", "0 1 2"
facts: dict[int, str] = {}
"""How many rows with this number there may be in the end."""

background: list[gevent.Greenlet] = []
threads = ThreadPoolExecutor(2)


class Broken(Exception):
    """A step found something that another request has left, or lost something of its own."""


class Wanted(Exception):
    """A view that fails."""


def run(sql: str, *values: Any, using: Any = None) -> list[Any]:
    with (using or connection).cursor() as cursor:
        cursor.execute(sql, values or None)
        return list(cursor.fetchall()) if cursor.description else []


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Broken(f"{what}: {found!r}, not {wanted!r}")


# --- Looking -----------------------------------------------------------------------------------

VARIABLES = (
    *("autocommit", "sql_mode", "time_zone", "lock_wait_timeout", "foreign_key_checks"),
    *("character_set_client", "collation_connection", "sort_buffer_size", "unique_checks"),
    *("sql_select_limit", "max_sort_length"),
)

LOOKS = (
    # First: a lease that has run nothing knows nothing.
    "SELECT LAST_INSERT_ID(), ROW_COUNT()",
    "SHOW WARNINGS",
    f"SELECT {', '.join(f'@@{name}' for name in VARIABLES)}",
    "SELECT DATABASE(), @mark, CURRENT_ROLE()",
    "SELECT COALESCE(IS_USED_LOCK('mark') = CONNECTION_ID(), 0)",
    "SELECT COUNT(*) FROM temporary_mark",
    "EXECUTE prepared_mark",
    "SELECT COUNT(*) FROM ledger WHERE number < 0",  # refused where tables are locked
)


def _look_at_server(using: Any) -> Iterator[str]:
    for sql in LOOKS:
        try:
            yield str(run(sql, using=using))
        except Exception as error:
            # Names and numbers of the server differ, its error codes do not.
            code = error.args[0] if error.args and isinstance(error.args[0], int) else ""
            yield f"{type(error).__name__} {code}"


def _look_at_wrapper(using: Any) -> Iterator[str]:
    state = vars(using)
    yield str(sorted(set(state) - {"_thread_ident", "features", "ops"}))
    for name in ("in_atomic_block", "needs_rollback", "savepoint_ids", "run_on_commit"):
        yield f"{name} {state[name]}"
    for name in ("execute_wrappers", "force_debug_cursor", "errors_occurred", "commit_on_exit"):
        yield f"{name} {state[name]}"
    yield f"{len(using.queries_log)} logged"
    yield f"{using.ops.quote_name('x')} {using.features.uses_savepoints}"
    yield f"{using.alias} {using.settings_dict['NAME']} {using.isolation_level}"
    using.ensure_connection()
    raw = using.connection
    yield f"{raw.decoders.get(999)} {raw.cursorclass.__name__} {raw.cursor().__class__.__name__}"
    yield f"{raw.insert_id()} {raw.affected_rows()}" if CAN_ASK else ""


CAN_ASK = True  # not in transaction mode, where these are refused


def look(request: HttpRequest) -> HttpResponse:
    """All that a request can see of those before it, for two aliases."""
    found = {}
    for alias in ("default", "replica"):
        using = connections[alias]
        # On the server first: what looks at the wrapper connects.
        found[alias] = [*_look_at_server(using), *_look_at_wrapper(using)]
    found["aliases"] = sorted(set(connections.settings) - {"tenant"})
    return JsonResponse(found)


# --- Steps that write --------------------------------------------------------------------------


def insert(number: int, using: Any = None) -> None:
    run(f"INSERT INTO {HOME}.ledger (number) VALUES (%s)", number, using=using)


def autocommitted(number: int) -> None:
    facts[number] = ANY
    insert(number)
    insert(number)
    facts[number] = COMMITTED


def atomic_pair(number: int) -> None:
    facts[number] = EITHER
    with transaction.atomic():
        insert(number)
        mine = run("SELECT CONNECTION_ID()")
        gevent.sleep(random.choice((0, 0, 0.002)))
        rows = run(f"SELECT COUNT(*) FROM {HOME}.ledger WHERE number = %s", number)
        expect(rows, [(1,)], "rows of one's own transaction")
        insert(number)
        expect(run("SELECT CONNECTION_ID()"), mine, "the connection of a transaction")
    facts[number] = COMMITTED


def atomic_undone(number: int) -> None:
    facts[number] = UNDONE
    try:
        with transaction.atomic():
            insert(number)
            gevent.sleep(0)
            insert(number)
            raise Wanted
    except Wanted:
        pass


def savepoints(number: int) -> None:
    facts[number] = EITHER
    with transaction.atomic():
        insert(number)
        try:
            with transaction.atomic():
                insert(number)
                gevent.sleep(0)
                raise Wanted
        except Wanted:
            pass
        insert(number)
    facts[number] = COMMITTED


def closed_in_atomic(number: int) -> None:
    facts[number] = UNDONE
    try:
        with transaction.atomic():
            insert(number)
            connection.close()
    except Exception:
        connection.close()


def executemany_with_queries(number: int) -> None:
    facts[number] = EITHER

    def rows() -> Iterator[tuple[int]]:
        for _ in range(2):
            with transaction.atomic():
                run("SELECT 1")
            gevent.sleep(0)
            yield (number,)

    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {HOME}.ledger (number) VALUES (%s)", cast("Any", rows()))
    facts[number] = COMMITTED


# --- Steps that leave something ----------------------------------------------------------------


def own_variable(number: int) -> None:
    run("SET @mark = %s", number)
    gevent.sleep(0)
    run("SELECT 1")
    expect(run("SELECT @mark"), [(number,)], "one's own variable")


def own_lock(number: int) -> None:
    if run("SELECT GET_LOCK('mark', 0)") == [(1,)]:
        gevent.sleep(0)
        expect(run("SELECT IS_USED_LOCK('mark') = CONNECTION_ID()"), [(1,)], "one's own lock")


def own_table(number: int) -> None:
    run("CREATE TEMPORARY TABLE IF NOT EXISTS temporary_mark (n BIGINT)")
    run("INSERT INTO temporary_mark VALUES (%s)", number)
    gevent.sleep(0)
    expect(run("SELECT n FROM temporary_mark WHERE n = %s", number), [(number,)], "own table")


def key_of_insert(number: int) -> None:
    facts[number] = EITHER
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {HOME}.ledger (number) VALUES (%s)", [number])
        gevent.sleep(0)
        expect(run("SELECT LAST_INSERT_ID()"), [(cursor.lastrowid,)], "the key of one's own row")
        insert(number)
    facts[number] = COMMITTED


def statement(*texts: str) -> Callable[[int], None]:
    def step(number: int) -> None:
        for text in texts:
            run(text.format(home=HOME, other=OTHER))

    return step


def failing(number: int) -> None:
    try:
        run("SELECT no_such_column FROM ledger")
    except Exception:
        return
    raise Broken("a statement that must fail did not")


def half_read(number: int) -> None:
    connection.ensure_connection()
    cursor = connection.connection.cursor(SSCursor)
    cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
    cursor.fetchone()


def direct_command(number: int) -> None:
    connection.ensure_connection()
    raw = connection.connection
    raw._execute_command(3, b"SET @mark = 1, time_zone = '+03:00'")
    raw._read_ok_packet()


def direct_writes(number: int) -> None:
    connection.ensure_connection()
    connection.connection.decoders[999] = str
    connection.connection.cursorclass = DictCursor


def wrapper_marks(number: int) -> None:
    connection.mark = number  # type: ignore[attr-defined]
    connection.ops.quote_name = str.upper  # type: ignore[method-assign, assignment]
    connection.features.uses_savepoints = False
    connection.force_debug_cursor = True
    connection.execute_wrappers.append(lambda execute, *args: execute(*args))
    run("SELECT 1")


def swapped_alias(number: int) -> None:
    connections["default"] = connections["replica"]
    expect(run("SELECT DATABASE()"), [(OTHER,)], "the database of the alias put there")


def tenant(number: int) -> None:
    name = random.choice((HOME, OTHER))
    connections.databases["tenant"] = {**connections.databases["default"], "NAME": name}
    if hasattr(connections._connections, "tenant"):  # type: ignore[attr-defined]
        connections["tenant"].close()
        del connections["tenant"]
    wrapper = connections["tenant"]
    gevent.sleep(0)
    expect(run("SELECT DATABASE()", using=wrapper), [(name,)], "the tenant's database")


def foreign_handler(number: int) -> None:
    with_own = ConnectionHandler(dict(connections.databases))
    try:
        run("SELECT 1", using=with_own["default"])
    finally:
        with_own["default"].close()


def spawned(number: int) -> None:
    def work() -> None:
        atomic_pair(number)
        own_variable(number)

    background.append(gevent.spawn(work))


def in_thread(number: int) -> None:
    def work() -> list[Any]:
        try:
            return run("SELECT 1")
        finally:
            connections.close_all()

    expect(threads.submit(work).result(20), [(1,)], "a query of a thread")


def left_open(number: int) -> None:
    facts[number] = UNDONE
    run("START TRANSACTION")
    insert(number)


def left_open_by_django(number: int) -> None:
    facts[number] = UNDONE
    transaction.set_autocommit(False)
    insert(number)


def left_open_by_variable(number: int) -> None:
    facts[number] = UNDONE
    run("SET autocommit = 0")
    insert(number)


STEPS: dict[str, Callable[[int], None]] = {
    "select": statement("SELECT 1"),
    "select in atomic()": transaction.atomic(statement("SELECT 1", "SELECT 2")),
    **{
        step.__name__: step
        for step in (
            *(autocommitted, atomic_pair, atomic_undone, savepoints, closed_in_atomic),
            *(executemany_with_queries, own_variable, own_lock, own_table, key_of_insert),
            *(failing, half_read, direct_command, wrapper_marks),
            *(tenant, foreign_handler, spawned, in_thread),
        )
    },
    "time_zone": statement("SET time_zone = '+05:00'"),
    "sql_mode": statement("SET sql_mode = 'ANSI_QUOTES'"),
    "variables": statement("SET lock_wait_timeout = 77, unique_checks = 0, max_sort_length = 64"),
    "limit": statement("SET sql_select_limit = 1"),
    "names": statement("SET NAMES latin1"),
    "prepared": statement("PREPARE prepared_mark FROM 'SELECT 1'"),
    "isolation": statement("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    "multiplied id": statement("SELECT LAST_INSERT_ID(12345)"),
    "found rows": statement("SELECT SQL_CALC_FOUND_ROWS number FROM {home}.ledger LIMIT 1"),
    "warning": statement("SELECT CAST('x' AS SIGNED)"),
}

LAST: dict[str, Callable[[int], None]] = {
    **{
        step.__name__: step
        for step in (
            *(left_open, left_open_by_django, left_open_by_variable),
            *(swapped_alias, direct_writes),
        )
    },
    "use": statement("USE {other}"),
    "read only": statement("SET SESSION TRANSACTION READ ONLY"),
    "locked tables": statement("LOCK TABLES {home}.ledger READ"),
    "fails": lambda number: (_ for _ in ()).throw(Wanted()),
    "ends": lambda number: None,
}
"""After these a request does nothing more: what follows would commit, fail or go elsewhere."""


TAKE_ANOTHER = {"in_thread", "tenant", "foreign_handler"}
"""Steps that take a connection of the pool while the view holds one. At a cap of three, three such
requests would wait for each other until the pool's timeout, as README.md says. One at a time may:
the others go on, and give theirs back."""

one_takes_another = gevent.lock.BoundedSemaphore(1)


def act(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """Do what ?steps=name,name says, with numbers from ?number= on.

    ?kill= and ?timeout= are seconds after which the greenlet is killed, or gets a gevent.Timeout.
    ?stream: the steps run while the answer is sent.
    """
    number = int(request.GET["number"])
    steps = request.GET["steps"].split(",")
    if "kill" in request.GET:
        gevent.spawn_later(
            float(request.GET["kill"]), gevent.kill, gevent.getcurrent(), block=False
        )

    def work() -> Iterator[bytes]:
        # Before the first connection: who waits here holds nothing.
        gate = contextlib.nullcontext() if TAKE_ANOTHER.isdisjoint(steps) else one_takes_another
        with gevent.Timeout(float(request.GET.get("timeout", 60))), gate:
            for i, name in enumerate(steps):
                (STEPS.get(name) or LAST[name])(number + i)
                yield b"."

    if "stream" in request.GET:
        return StreamingHttpResponse(_checked(work()))
    return HttpResponse(b"".join(_checked(work())))


broken: list[str] = []


def _checked(work: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from work
    except Broken as error:
        broken.append(str(error))
        raise


def state(request: HttpRequest) -> HttpResponse:
    """Once all is over: facts, what went wrong, and what the pools have."""
    gevent.joinall(background, timeout=30)
    background.clear()
    pools = {id(pool): pool for pool in patch.pools().values()}.values()
    stats = [pool.stats() for pool in pools]
    return JsonResponse(
        {
            "facts": facts,
            "broken": broken,
            "in_use": sum(s["in_use"] for s in stats),
            "idle": sum(s["idle"] for s in stats),
            "waiting": sum(s["waiting"] for s in stats),
            "cap": sum(s["max_outstanding"] for s in stats),
        }
    )


def names(request: HttpRequest) -> HttpResponse:
    """The steps there are, and those that come last."""
    return JsonResponse([list(STEPS), list(LAST)], safe=False)
