"""What test_unavailable.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import logging
from typing import Any

import gevent
from django.db import OperationalError, transaction
from django.test import Client

from pooled_serve.errors import PoolTimeout
from pooled_serve.status import pool_log
from support.inside import assert_sound, patch, pool, run, settle


def django_sees_a_pool_timeout_as_an_operational_error() -> None:
    def hold() -> None:
        run("SELECT 1")
        gevent.sleep(3600)

    holders = [gevent.spawn(hold) for _ in range(4)]
    settle(lambda: pool().stats()["in_use"] == 4 if patch._databases else False)
    pool().timeout = 0.1
    try:
        with transaction.atomic():
            run("SELECT 1")
        raise AssertionError("ran")
    except OperationalError as error:
        assert isinstance(error, PoolTimeout)
        assert error.in_use == error.cap == 4
        assert error.pool == "default"
        assert type(error).__name__ == "DatabasePoolTimeout", type(error)
        assert error.__cause__ is None
    gevent.killall(holders)
    pool().timeout = 30
    assert_sound()


def only_a_pool_timeout_becomes_a_503() -> None:
    pool_log.PAUSES_SECONDS = (0.0, 3600.0, 3600.0, 3600.0)
    client = Client(raise_request_exception=False)

    def hold() -> None:
        run("SELECT 1")
        gevent.sleep(3600)

    assert client.get("/one").status_code == 200
    patch.end_request()
    holders = [gevent.spawn(hold) for _ in range(4)]
    settle(lambda: pool().stats()["in_use"] == 4)
    pool().timeout = 0.1
    lines = []

    class Keep(logging.Handler):
        def emit(self, record: Any) -> None:
            lines.append(record)

    logging.getLogger().addHandler(Keep())
    for _ in range(3):
        answer = client.get("/one")
        assert answer.status_code == 503, answer
        assert answer["Retry-After"] == "1"
        assert b"busy" in answer.content
    (line,) = [r for r in lines if r.name == "gunicorn.error"]
    assert line.levelname == "WARNING"
    assert not line.exc_info
    assert "4 in use" in line.getMessage()
    gevent.killall(holders)
    pool().timeout = 30
    logging.getLogger("django.request").disabled = True
    answer = client.get("/bad")
    assert answer.status_code == 500, answer
    patch.end_request()
    assert_sound()
