"""The views of test_abandoned.py: statements that are left in the middle."""

import random
from typing import Any

import gevent
from django.db import connection
from django.http import HttpRequest, HttpResponse
from pymysql.cursors import SSCursor


def run(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def abandon(request: HttpRequest) -> HttpResponse:
    seconds = random.choice((0, 0.001, 0.01, 0.05))
    run("SELECT 1")
    session: Any = connection.connection
    if session._conn is not None and random.random() < 0.5:  # the view keeps it
        with gevent.Timeout(seconds, False):
            run("SELECT SLEEP(60)")
        return HttpResponse()
    sessions: list[Any] = []

    def work() -> None:
        connection.ensure_connection()
        sessions.append(connection.connection)
        run("SELECT SLEEP(60)")

    connection.close()  # nobody may wait for himself
    greenlet = gevent.spawn(work)
    # From the moment when it has a connection to the send nothing switches: it is in the middle.
    while not (sessions and sessions[0]._conn) and not greenlet.dead:
        gevent.sleep(0.001)
    gevent.sleep(seconds)
    greenlet.kill(random.choice((gevent.GreenletExit, gevent.Timeout)))
    return HttpResponse()


def half_read(request: HttpRequest) -> HttpResponse:
    """The first row of a result whose third one takes the server a minute."""
    connection.ensure_connection()
    session: Any = connection.connection
    cursor = session.cursor(SSCursor)
    cursor.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4) "
        "SELECT REPEAT('x', 50000), IF(i < 3, 0, SLEEP(60)) FROM n"
    )
    cursor.fetchone()
    request.kept = cursor  # type: ignore[attr-defined]  # who drops it, reads to the end
    return HttpResponse()
