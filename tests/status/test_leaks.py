"""Which frames of a stack are the project's."""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path
from types import CodeType, ModuleType

import django
import gunicorn
import pytest

from pooled_serve.status import leaks
from pooled_serve.status.leaks import MAX_FRAMES, WatchedLease, relevant
from support.driver import FakeDriver, settle
from support.log_lines import HELD_BACK
from support.pools import Clock

LIBRARY = Path(django.__file__).parent


def code(file: object) -> CodeType:
    return compile("", str(file), "exec")


def stack(*files: object) -> leaks.Stack:
    """The innermost first."""
    return [(code(file), number) for number, file in enumerate(files)]


def numbers(found: leaks.Stack) -> list[int]:
    return [number for _, number in found]


OWN, DJANGO = "/srv/shop/views.py", LIBRARY / "db/models/query.py"
STDLIB, GUNICORN, FROZEN = functools.__file__, gunicorn.__file__, "<frozen runpy>"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((DJANGO, OWN, GUNICORN), [1]),
        ((DJANGO, DJANGO, OWN, DJANGO, OWN, DJANGO, GUNICORN), [2, 3, 4]),
        ((OWN, STDLIB, FROZEN, OWN, FROZEN), [0, 1, 2, 3]),
        ((DJANGO, STDLIB, GUNICORN), [0, 1, 2]),
        ((), []),
        ((*[DJANGO] * 50, OWN, *[DJANGO] * 50, OWN), list(range(50, 50 + MAX_FRAMES))),
        ([DJANGO] * 50, list(range(MAX_FRAMES))),
    ],
)
def test_the_frames_of_the_project_and_those_between(
    files: tuple[object, ...], expected: list[int]
) -> None:
    assert numbers(relevant(stack(*files))) == expected


@pytest.mark.parametrize("blocked", [0.0, 0.7])
def test_a_report_tells_of_a_standstill_of_the_loop(
    blocked: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver()
    pool = driver.pool(size=1, max_outstanding=1)
    clock = Clock()  # that of the machine would tell of the machine's own standstills, too
    monkeypatch.setattr(leaks, "time", clock)
    leaks._reports.clear()
    lease = WatchedLease(pool, "GET /slow", 0.05)
    clock.now += 0.05 + blocked
    settle(lambda: "has been held" in caplog.text)
    (report,) = [text for text in caplog.messages if "has been held" in text]
    assert ("(the event loop stood still for 0." in report) is bool(blocked)
    lease.end()
    with caplog.at_level(logging.INFO):
        settle(lambda: HELD_BACK in caplog.text)  # or the next test would have that line
    caplog.clear()
    ended = WatchedLease(pool, "GET /innocent", 0.05)
    ended.end()
    ended._fire()  # which was on its way
    assert "innocent" not in caplog.text
    leaks._reports.clear()
    pool.close()


@pytest.fixture
def _forgotten() -> None:
    for function in (leaks.is_own, leaks._project):
        function.cache_clear()


@pytest.mark.usefixtures("_forgotten")
def test_a_project_may_be_installed_beside_the_libraries(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(leaks.is_own.cache_clear)
    request.addfinalizer(leaks._project.cache_clear)
    package = ModuleType("shop")
    package.__path__ = [str(LIBRARY.parent / "shop")]
    monkeypatch.setitem(sys.modules, "shop", package)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings.production")
    found = relevant(stack(DJANGO, LIBRARY.parent / "shop/orders/views.py", DJANGO))
    assert numbers(found) == [1]
    assert numbers(relevant(stack(DJANGO, LIBRARY.parent / "shop_tools/views.py"))) == [0, 1]
