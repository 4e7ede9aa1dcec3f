"""Alliance Auth on MariaDB and Redis: members ask to join a group, and their boss lets them in."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
from served import MODES, Browser, program, run, served

from support import debian
from support.ports import free_port
from support.processes import wait_until
from support.servers import Database, Server, tied_to_us

PASSWORD = "a-long-password-of-a-member"
MEMBERS = 4  # more than there are connections; and their boss

SCRIPT = Path(__file__).with_name("allianceauth_members.py")

JOIN = "/groupmanagement/request/join/"
ASK = re.compile(r'"(/group/request/join/\d+/)"')
ACCEPT = re.compile(r'<a id="(\d+)" class="btn btn-success join-accept')
NOTE = re.compile(r'"(/notifications/\d+/)"')

# What an administrator adds to the project's settings.
LOCAL = """
    DATABASES["default"] |= {database!r}
    BROKER_URL = "redis://127.0.0.1:{redis}/0"
    CACHES["default"]["LOCATION"] = "redis://127.0.0.1:{redis}/1"
    STATIC_ROOT = {static!r}
    ESI_SSO_CLIENT_ID = ESI_SSO_CLIENT_SECRET = "none"
    ESI_USER_CONTACT_EMAIL = "boss@example.com"
    # There is no TLS here.
    ALLOWED_HOSTS = ["127.0.0.1"]
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = False
"""


@pytest.fixture(scope="module")
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture(scope="module")
def redis() -> Iterator[int]:
    """The port of a server that keeps nothing."""
    try:
        needed = ("redis-tools", "liblzf1", "libjemalloc2")
        server = debian.program("redis-server", "redis-server", *needed)
    except debian.ProgramMissing as missing:
        pytest.skip(str(missing))
    port = free_port()
    libraries = os.pathsep.join(map(str, server.parents[1].glob("lib/*-linux-gnu")))
    with subprocess.Popen(
        tied_to_us([str(server), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]),
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        stdout=subprocess.DEVNULL,
    ) as process:

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        try:
            wait_until(listens)
            yield port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def auth(tmp_path_factory: pytest.TempPathFactory, database: Database, redis: int) -> Path:
    """What `allianceauth start` makes, migrated."""
    folder = tmp_path_factory.mktemp("auth")
    run([program("allianceauth"), "start", "myauth", str(folder)], cwd=folder)
    with (folder / "myauth" / "settings" / "local.py").open("a") as local:
        static = str(folder / "static")
        local.write(dedent(LOCAL).format(database=database.django(), redis=redis, static=static))
    manage = [sys.executable, "manage.py"]
    run([*manage, "migrate"], cwd=folder)
    run([*manage, "collectstatic", "--noinput"], cwd=folder)
    accounts = {"MEMBERS": str(MEMBERS + 1), "MEMBERS_PASSWORD": PASSWORD}
    run([*manage, "shell"], cwd=folder, env=accounts, said=SCRIPT.read_text())
    return folder


def log_in(address: str, number: int) -> Browser:
    browser = Browser(address)
    answer = browser.fill_in(
        "/admin/login/", "username", username=f"member{number}", password=PASSWORD
    )
    assert answer.url.endswith("/admin/"), answer.text
    return browser


@pytest.mark.parametrize("mode", MODES)
def test_members_join_a_group(auth: Path, database: Database, mariadb: Server, mode: str) -> None:
    with (
        served(
            "myauth.wsgi", "--pool-mode", mode, mariadb=mariadb, database=database, cwd=auth
        ) as site,
        ThreadPoolExecutor(MEMBERS) as threads,
    ):
        boss, *members = threads.map(
            lambda number: log_in(site.address, number), range(MEMBERS + 1)
        )
        # The first page after a start writes the menu, and fails if another does so, too.
        boss.get("/dashboard/")
        name = f"Bakers {mode}"
        answer = boss.fill_in("/admin/groupmanagement/group/add/", "name", name=name)
        assert answer.url.endswith("/admin/groupmanagement/group/"), answer.text

        # All at once, also the answers.
        list(threads.map(ask_to_join, members))
        requests = ACCEPT.findall(boss.get("/groupmanagement/requests/").text)
        assert len(requests) == MEMBERS
        list(threads.map(lambda number: boss.get(f"{JOIN}accept/{number}/"), requests))
        for note in threads.map(newest_note, members):
            assert f"Your application to {name} has been accepted." in note
        for answer in threads.map(lambda member: member.get("/dashboard/"), members):
            assert name in answer.text

        site.assert_whole("auth_user", lambda: boss.get("/groups/"))


def ask_to_join(member: Browser) -> None:
    """The group that this member is not yet in."""
    (path,) = ASK.findall(member.get("/groups/").text)
    member.get(path)


def newest_note(member: Browser) -> str:
    """Which counts as read from now on."""
    notes = NOTE.findall(member.get("/notifications/").text)
    return member.get(max(notes, key=lambda path: int(path.split("/")[-2]))).text
