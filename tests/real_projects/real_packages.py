"""Packages that put themselves between Django and its database, with the pool below them."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from conftest import MakeProject, StartServe
from support.processes import wait_until
from support.serve import environment
from support.servers import Database, Server
from support.site import Site

StartSite = Callable[..., Site]

MODES = ["request", "transaction"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


# --- Engines -----------------------------------------------------------------------------------

PLACES = Path(__file__).with_name("geo_views.py")


@pytest.mark.skipif(not ctypes.util.find_library("gdal"), reason="there is no GDAL here")
def test_geodjango(site: StartSite, mode: str) -> None:
    shop = site(*("--pool-mode", mode), views=PLACES, ENGINE="django.contrib.gis.db.backends.mysql")
    assert shop.server.get("/settle").status == 200, shop.server.log
    assert shop.server.get("/near").json() == [["mill", [1, 1]]]
    shop.assert_whole()


def test_django_prometheus_counts_queries_and_real_connects(site: StartSite, mode: str) -> None:
    shop = site(
        *("--pool-mode", mode),
        views="""
        def metrics(request):
            from prometheus_client import generate_latest
            return HttpResponse(generate_latest(), content_type="text/plain")
        """,
        ENGINE="django_prometheus.db.backends.mysql",
    )
    for _ in range(5):
        assert shop.run("SELECT 1").status == 200
    shop.assert_whole()
    told = dict(
        line.rsplit(" ", 1)
        for line in shop.server.get("/metrics").text.splitlines()
        if line.startswith("django_db_")
    )
    labels = '{alias="default",vendor="mysql"}'
    assert float(told[f"django_db_execute_total{labels}"]) > 5
    opened = shop.pool()["opened_total"]
    assert float(told[f"django_db_new_connections_total{labels}"]) == opened


# --- What watches Django -----------------------------------------------------------------------


@pytest.fixture
def watched(
    project: MakeProject, serve: StartServe, database: Database, mode: str
) -> Callable[..., Any]:
    """Starts a project with these views and settings."""

    def start(views: str, settings: str) -> Any:
        head = """
            from django.db import connection
            from django.http import HttpResponse, JsonResponse

            def ask(request):
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 'a question', CONNECTION_ID()")
                    return HttpResponse(f"<html><body>{cursor.fetchone()[1]}</body></html>")
        """
        folder = project(
            dedent(head) + dedent(views),
            databases={"default": database.django()},
            settings=settings,
        )
        return serve(folder, "--pool-mode", mode, "--pool-size", "1")

    return start


def test_the_debug_toolbar_shows_the_queries(watched: Any) -> None:
    server = watched(
        """
        from debug_toolbar.toolbar import debug_toolbar_urls
        from django.urls import path

        urlpatterns = [path("ask", ask), *debug_toolbar_urls()]
        """,
        """
        DEBUG = True
        INTERNAL_IPS = ["127.0.0.1"]
        ROOT_URLCONF = "mysite.views"
        STATIC_URL = "static/"
        INSTALLED_APPS = ["django.contrib.staticfiles", "debug_toolbar"]
        MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware"]
        TEMPLATES = [
            {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
        ]
        """,
    )
    for _ in range(2):
        page = server.get("/ask").text
        assert "djDebug" in page, server.log
        assert "1 query in" in page


def test_sentry_sees_queries_as_spans_and_breadcrumbs(watched: Any) -> None:
    server = watched(
        """
        from mysite.settings import envelopes

        def fail(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 'before the error'")
            raise ValueError("for Sentry")

        def captured(request):
            import sentry_sdk
            sentry_sdk.flush()
            items = [item.payload.json for envelope in envelopes for item in envelope.items]
            return JsonResponse([item for item in items if item], safe=False)
        """,
        """
        import sentry_sdk
        from sentry_sdk.transport import Transport

        envelopes = []

        class Keep(Transport):
            def capture_envelope(self, envelope):
                envelopes.append(envelope)

        sentry_sdk.init("http://key@127.0.0.1:9/1", transport=Keep, traces_sample_rate=1.0)
        """,
    )
    first = server.get("/ask").text
    assert server.get("/ask").text == first  # one connection, in use again
    assert server.get("/fail").status == 500
    items = server.get("/captured").json()
    asked = [
        span["description"]
        for item in items
        if item.get("transaction") == "/ask"
        for span in item.get("spans", ())
    ]
    assert sum("a question" in description for description in asked) == 2
    (error,) = [item for item in items if "exception" in item]
    crumbs = [crumb["message"] for crumb in error["breadcrumbs"]["values"]]
    assert "SELECT 'before the error'" in crumbs


TELEMETRY = """
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    DjangoInstrumentor().instrument(tracer_provider=provider)
    PyMySQLInstrumentor().instrument(tracer_provider=provider)
"""


def test_opentelemetry_sees_requests_and_queries(watched: Any) -> None:
    server = watched(
        """
        from mysite.settings import spans

        def captured(request):
            return JsonResponse([span.name for span in spans.get_finished_spans()], safe=False)
        """,
        TELEMETRY,
    )
    first = server.get("/ask").text
    assert server.get("/ask").text == first
    names = server.get("/captured").json()
    assert names.count("GET ask") == 2
    assert names.count("SELECT") == 2


# --- Outside of a web server -------------------------------------------------------------------

WORK = """
    from django.db import connection, transaction

    def work(number):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(0.1)")
            cursor.execute("INSERT INTO done SELECT %s, CONNECTION_ID()", [number])
"""


@pytest.fixture
def workshop(project: MakeProject, mariadb: Server, database: Database) -> Path:
    """A project whose work leaves behind who did it."""
    mariadb.admin.query(f"CREATE TABLE {database.name}.done (number INT PRIMARY KEY, who INT)")
    folder = project(
        databases={"default": database.django()}, settings="INSTALLED_APPS = ['mysite']"
    )
    (folder / "mysite" / "work.py").write_text(dedent(WORK))
    return folder


def done(server: Server, database: Database) -> list[int]:
    rows = server.admin.query(f"SELECT who FROM {database.name}.done")
    return [row["who"] for row in rows]


def test_celery_with_gevent(workshop: Path, mariadb: Server, database: Database) -> None:
    for folder in ("in", "processed"):
        (workshop / folder).mkdir()
    app = Path(__file__).with_name("celery_app.py").read_text()
    (workshop / "mysite" / "celery.py").write_text(app)
    command = [sys.executable, "-m", "celery", "-A", "mysite.celery"]
    log = workshop / "celery.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "worker", "-P", "gevent", "-c", "10", "--without-gossip"],
            cwd=workshop,
            env=environment(),
            stdout=output,
            stderr=output,
        ) as worker,
    ):
        try:
            send = "from mysite.celery import task\nfor n in range(20): task.delay(n)"
            subprocess.run(
                [sys.executable, "-c", send], cwd=workshop, env=environment(), check=True
            )
            wait_until(lambda: len(done(mariadb, database)) == 20, timeout=120)
            assert len(set(done(mariadb, database))) <= 4
            # Each task has given its connection back.
            wait_until(lambda: len(mariadb.admin.processlist(database.user)) == 2)
        except BaseException:
            print(log.read_text())
            raise
        finally:
            worker.terminate()
            worker.wait(120)
    assert "Traceback" not in log.read_text()
    wait_until(lambda: not mariadb.admin.processlist(database.user))


def test_a_management_command(workshop: Path, mariadb: Server, database: Database) -> None:
    commands = workshop / "mysite" / "management" / "commands"
    commands.mkdir(parents=True)
    for package in (commands.parent, commands):
        (package / "__init__.py").touch()
    (commands / "work.py").write_text(
        dedent("""
            from django.core.management.base import BaseCommand
            from gevent.pool import Pool

            from mysite.work import work
            from pooled_serve import pooling

            pooling.set_pool_size(2, max_outstanding=3)
            pooling.apply_patch()

            class Command(BaseCommand):
                def handle(self, **options):
                    Pool(10).map(work, range(20))
        """)
    )
    manage = "from django.core import management\nmanagement.execute_from_command_line()"
    (workshop / "manage.py").write_text(manage)
    command = [sys.executable, "-m", "gevent.monkey", "manage.py", "work"]
    env = environment({"DJANGO_SETTINGS_MODULE": "mysite.settings"})
    subprocess.run(command, cwd=workshop, env=env, check=True)
    assert len(done(mariadb, database)) == 20
    assert len(set(done(mariadb, database))) <= 3
    wait_until(lambda: not mariadb.admin.processlist(database.user))
