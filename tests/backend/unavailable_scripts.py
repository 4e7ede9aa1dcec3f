"""What test_unavailable.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import logging
from typing import Any

import django
import gevent
from django.core import mail
from django.core.signals import got_request_exception
from django.db import OperationalError, connections, transaction
from django.test import Client, override_settings

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import metrics
from pooled_serve.status import repeats
from support.inside import assert_sound, patch, pool, run, settle


def hold() -> None:
    run("SELECT 1")
    gevent.sleep(3600)


def django_sees_a_pool_timeout_as_an_operational_error() -> None:
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


class Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Any] = []

    def emit(self, record: Any) -> None:
        self.lines.append(record)


@override_settings(
    MIDDLEWARE=["mysite.views.Middleware"],
    ADMINS=["ada@example.com"] if django.VERSION >= (6,) else [("Ada", "ada@example.com")],
)
def a_refused_login_is_a_500_that_is_logged_like_an_outage() -> None:
    repeats.PAUSES_SECONDS = (0.0, 3600.0, 3600.0, 3600.0)
    client = Client(raise_request_exception=False)
    assert client.get("/one").status_code == 200
    patch.end_request()
    right = connections["default"].settings_dict["PASSWORD"]
    connections["default"].settings_dict["PASSWORD"] = "not this one"
    keep = Keep()
    logging.getLogger().addHandler(keep)
    for name in ("django", "django.request", "django.server"):  # as an owner of a log would see
        logging.getLogger(name).addHandler(keep)
    mails: list[Any] = []
    mail.mail_admins = lambda *args, **named: mails.append(args)
    told = []
    got_request_exception.connect(lambda **named: told.append(named), weak=False)
    for _ in range(20):
        answer = client.get("/one")
        assert answer.status_code == 500, answer
        assert b"<h1>Server Error (500)</h1>" in answer.content
    assert len(told) == 20, "it is an error, as for any other"
    assert metrics.by_name(pool().row, 0.0)["failed_total"] == 20
    settle(lambda: len(keep.lines) >= 2)  # one is written in a greenlet of its own
    assert not mails
    assert all(not line.exc_info for line in keep.lines), keep.lines
    said = [line.getMessage() for line in keep.lines]
    assert len(said) == 2, said
    assert any("refuses the login: Access denied" in text and "→ correct" in text for text in said)
    assert any(text.startswith("500 Internal Server Error: database 'default'") for text in said)
    assert client.get("/catching").content == b"1045"
    answer = client.get("/one?middleware=1")
    assert answer.content == b"by the middleware", (answer, answer.content)
    connections["default"].settings_dict["PASSWORD"] = right
    patch.end_request()
    settle(lambda: client.get("/one").status_code == 200)
    assert_sound()


def only_a_pool_timeout_becomes_a_503() -> None:
    repeats.PAUSES_SECONDS = (0.0, 3600.0, 3600.0, 3600.0)
    client = Client(raise_request_exception=False)

    def hold() -> None:
        run("SELECT 1")
        gevent.sleep(3600)

    assert client.get("/one").status_code == 200
    patch.end_request()
    holders = [gevent.spawn(hold) for _ in range(4)]
    settle(lambda: pool().stats()["in_use"] == 4)
    pool().timeout = 0.1
    keep = Keep()
    logging.getLogger().addHandler(keep)
    for _ in range(3):
        answer = client.get("/one")
        assert answer.status_code == 503, answer
        assert answer["Retry-After"] == "1"
        assert b"busy" in answer.content
    (line,) = [r for r in keep.lines if r.name == "gunicorn.error"]
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


@override_settings(MIDDLEWARE=["mysite.views.Middleware"])
def a_view_or_a_middleware_can_answer_in_its_own_words() -> None:
    holders = [gevent.spawn(hold) for _ in range(4)]
    settle(lambda: pool().stats()["in_use"] == 4 if patch._databases else False)
    pool().timeout = 0.1
    client = Client(raise_request_exception=False)
    busy = client.get("/one")
    assert (busy.status_code, busy["Retry-After"]) == (503, "1")
    assert client.get("/catching").content.startswith(b"pool 'default': no connection within")
    assert client.get("/one?middleware").content == b"by the middleware"
    gevent.killall(holders)
    pool().timeout = 30
    assert_sound()
