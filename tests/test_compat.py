"""A Django, PyMySQL or gunicorn that has moved what pooled-serve plugs into."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import pytest

from conftest import MakeProject
from pooled_serve import compat
from pooled_serve.errors import EXIT_PROJECT, StartupError
from support.command import run
from support.django_project import APP
from support.servers import ROOT

SQLITE = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
PLACES = [place for places in compat.SIGNATURES.values() for place, _ in places]

# Run at the start of the interpreter, it makes of what is installed a version yet to come.
FUTURES = {
    "another parameter of Django's": (
        """
        from django.db.utils import ConnectionHandler
        ConnectionHandler.create_connection = lambda self, alias, using: None
        """,
        "django",
        "ConnectionHandler.create_connection takes (self, alias, using), not (self, alias)",
    ),
    "another parameter of PyMySQL's": (
        """
        from pymysql.connections import Connection
        Connection.query = lambda self, sql, unbuffered=False, timeout=None: None
        """,
        "pymysql",
        "Connection.query takes (self, sql, unbuffered, timeout), not (self, sql, unbuffered)",
    ),
    "a method of PyMySQL's is gone": (
        "from pymysql.connections import Connection; del Connection._write_bytes",
        "pymysql",
        "there is no Connection._write_bytes(self, data)",
    ),
    "a name of PyMySQL's is gone": (
        "from pymysql.constants import CR; del CR.CR_SERVER_LOST",
        "pymysql",
        "cannot import name 'CR_SERVER_LOST'",
    ),
    "a name of Django's is gone": (
        "import django.db.utils; del django.db.utils.load_backend",
        "django",
        "cannot import name 'load_backend'",
    ),
    "a method of gunicorn's is gone": (
        "from gunicorn.workers.base_async import AsyncWorker; del AsyncWorker.handle_http2_request",
        "gunicorn",
        "there is no GeventWorker.handle_http2_request",
    ),
    "gunicorn's gevent worker is gone": (
        "import sys; sys.modules['gunicorn.workers.ggevent'] = None",
        "gunicorn",
        "import of gunicorn.workers.ggevent halted",
    ),
}


@pytest.mark.parametrize("future", FUTURES.values(), ids=FUTURES.keys())
def test_it_is_told_of_in_one_line_before_anything_starts(
    project: MakeProject, tmp_path: Path, future: tuple[str, str, str]
) -> None:
    source, package, says = future
    (tmp_path / "sitecustomize.py").write_text(dedent(source))
    done = run(APP, cwd=project(databases=SQLITE), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    remedy = f"pip install '{package}=={compat.NEWEST[package]}.*', or a newer pooled-serve"
    done.assert_one_problem("PS504", EXIT_PROJECT, says, remedy)
    assert f"{package} {version(package)} does not fit" in done.output
    assert "Starting gunicorn" not in done.output


def test_apply_patch_tells_of_it_too(tmp_path: Path) -> None:
    source = dedent("""
        from pymysql.connections import Connection
        Connection._force_close = lambda self, why: None
        from pooled_serve import pooling
        pooling.apply_patch()
    """)
    done = run("-c", source, cwd=tmp_path, command=(sys.executable,))
    assert "StartupError: PS504 pymysql" in done.output
    assert "Connection._force_close takes (self, why), not (self)" in done.output


def test_wrappers_that_are_kept_elsewhere_are_told_of(tmp_path: Path) -> None:
    source = dedent("""
        from types import SimpleNamespace
        from django.db import connections
        connections._connections = SimpleNamespace(_data={})
        from pooled_serve import pooling
        pooling.apply_patch()
    """)
    done = run("-c", source, cwd=tmp_path, command=(sys.executable,))
    assert "StartupError: PS504 asgiref" in done.output
    assert "there is no threading.local in Local._storage" in done.output


def test_a_gevent_that_is_too_old_for_gunicorn_is_told_of() -> None:
    with (
        pytest.raises(StartupError, match=r"PS504 gevent .* 24\.10\.1 or higher"),
        compat.imports(),
    ):
        raise RuntimeError("gevent worker requires gevent 24.10.1 or higher")


@pytest.mark.parametrize("place", PLACES)
def test_each_place_is_looked_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = place.partition(".")[0]
    monkeypatch.setattr(place.replace(":", "."), lambda here, it_is, different: None)
    with pytest.raises(StartupError, match="different"):
        compat.check(package)


@pytest.mark.parametrize("place", PLACES)
def test_wrappers_of_others_are_none_of_our_business(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tracing puts them around methods of Django and PyMySQL."""
    monkeypatch.setattr(place.replace(":", "."), lambda *args, **kwargs: None)
    compat.check(place.partition(".")[0])
