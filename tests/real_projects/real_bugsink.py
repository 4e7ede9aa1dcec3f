"""Bugsink on MariaDB: errors arrive from several programs while somebody looks at them."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
import sentry_sdk
from sentry_sdk.utils import event_from_exception
from served import MODES, Browser, program, run, served

from support.ports import free_port
from support.servers import Database, Server

USER, PASSWORD = "keeper", "a-long-password-of-a-keeper"
PROGRAMS, KINDS, REPORTS = 6, 4, 3

# What an administrator adds to the file that bugsink-create-conf writes. Bugsink looks at sys.argv
# to find out what it runs in; with this, the title of each page tells.
CONF = """
    import pymysql

    pymysql.install_as_MySQLdb()  # for bugsink-manage

    DATABASES["default"] = {database!r}
    DATABASES["snappea"]["NAME"] = {queue!r}
    BUGSINK["PHONEHOME"] = False
    BUGSINK["SITE_TITLE"] = f"Bugsink in {{I_AM_RUNNING}}"
"""

ISSUE = re.compile(r'"(/issues/issue/[^"]+/event/last/)"')


@pytest.fixture(scope="module")
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture(scope="module")
def port() -> int:
    """Where it is served: the address is part of what programs report to."""
    return free_port()


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, database: Database, port: int) -> Path:
    """A new installation. With this template, the request that brings an event also digests it."""
    folder = tmp_path_factory.mktemp("sink")
    where = ("--template=local", "--host=127.0.0.1", f"--port={port}")
    run([program("bugsink-create-conf"), *where], cwd=folder)
    with (folder / "bugsink_conf.py").open("a") as conf:
        queue = str(folder / "snappea.sqlite3")
        conf.write(dedent(CONF).format(database=database.django(), queue=queue))
    manage = program("bugsink-manage")
    run([manage, "migrate"], cwd=folder)
    run([manage, "migrate", "snappea", "--database=snappea"], cwd=folder)
    run(
        [manage, "createsuperuser", "--noinput", f"--username={USER}", "--email=k@example.com"],
        cwd=folder,
        env={"DJANGO_SUPERUSER_PASSWORD": PASSWORD},
    )
    return folder


def report_failures(dsn: str) -> None:
    """What a program does that fails several times in each of several ways."""
    client = sentry_sdk.Client(dsn=dsn, default_integrations=False, send_client_reports=False)
    for number in range(KINDS * REPORTS):
        try:
            raise ValueError(f"way {number % KINDS}")
        except ValueError as error:
            event, hint = event_from_exception(error)
        event["fingerprint"] = [f"way {number % KINDS}"]
        assert client.capture_event(event, hint)
    client.close(timeout=60)


@pytest.mark.parametrize("mode", MODES)
def test_programs_report_errors_and_a_keeper_resolves_one(
    sink: Path, database: Database, mariadb: Server, port: int, mode: str
) -> None:
    with served(
        "bugsink.wsgi",
        *("--pool-mode", mode),
        mariadb=mariadb,
        database=database,
        cwd=sink,
        address=("127.0.0.1", port),
    ) as bugsink:
        keeper = log_in(bugsink.address)
        answer = keeper.fill_in("/projects/new/", "visibility", name=f"oven {mode}")
        dsn = re.search(rf"http://\w+@127.0.0.1:{port}/(\d+)", answer.text)
        assert dsn, answer.text
        issues = f"/issues/{dsn[1]}/"

        with ThreadPoolExecutor(PROGRAMS + 1) as threads:
            programs = [threads.submit(report_failures, dsn[0]) for _ in range(PROGRAMS)]
            while not all(reporting.done() for reporting in programs):
                keeper.get(issues)
            for reporting in programs:
                reporting.result()

        page = keeper.get(issues).text
        assert page.count(f"with <b>{PROGRAMS * REPORTS}</b> events") == KINDS, page
        first, *others = dict.fromkeys(ISSUE.findall(page))
        assert len(others) == KINDS - 1
        assert "report_failures" in keeper.get(first).text  # the stack
        assert keeper.fill_in(first, "action", action="resolve").status_code == 200
        assert set(ISSUE.findall(keeper.get(issues).text)) == set(others)
        assert set(ISSUE.findall(keeper.get(f"{issues}resolved/").text)) == {first}

        bugsink.assert_whole("django_session", lambda: keeper.get(issues))


def log_in(address: str) -> Browser:
    browser = Browser(address)
    answer = browser.fill_in("/accounts/login/", "username", username=USER, password=PASSWORD)
    assert "/accounts/logout/" in answer.text
    assert "Bugsink in OTHER" in answer.text
    return browser


def test_a_link_of_another_name_is_taken_for_gunicorn(
    sink: Path, database: Database, mariadb: Server, tmp_path: Path
) -> None:
    link = tmp_path / "pooled-gunicorn"
    link.symlink_to(program("pooled-serve"))
    with served(
        "bugsink.wsgi", mariadb=mariadb, database=database, cwd=sink, command=[str(link)]
    ) as bugsink:
        assert "Bugsink in GUNICORN" in Browser(bugsink.address).get("/accounts/login/").text
