"""What test_pooling.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

from typing import Any

import gevent
from django.core.signals import request_finished
from django.db import transaction
from gevent.event import Event

from support.inside import assert_sound, one, patch, pool, run, settle


def none_means_no_limit_as_with_the_ancestor() -> Any:
    enough = Event()

    def hold() -> None:
        run("SELECT 1")
        enough.wait()

    holders = [gevent.spawn(hold) for _ in range(30)]
    settle(lambda: patch._databases and pool().stats()["acquired_total"] == 30)
    peak = pool().stats()["in_use"]
    enough.set()
    gevent.joinall(holders, raise_error=True)
    settle(lambda: pool().stats()["in_use"] == 0)
    return [peak, pool().stats()["idle"]]


def plain_python_without_gevents_patches_is_pooled_and_says_goodbye() -> None:
    ids = []
    for _ in range(3):
        ids.append(one("SELECT CONNECTION_ID()"))
        request_finished.send(None)
    assert len(set(ids)) == 1
    with transaction.atomic():
        run("SELECT 1")
    assert_sound()
