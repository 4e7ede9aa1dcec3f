"""A new Wagtail site on MariaDB, used as an editor and as readers use it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from bs4 import BeautifulSoup
from PIL import Image
from served import MODES, Application, program, run, served

from support.ports import free_port
from support.processes import wait_until
from support.serve import environment
from support.servers import Database, Server, tied_to_us

USER, PASSWORD = "editor", "a-long-password-of-an-editor"

# The site's own settings import this module if it is there.
LOCAL = """
    import pymysql

    pymysql.install_as_MySQLdb()  # for manage.py

    DATABASES = {databases!r}
"""


@pytest.fixture(scope="module")
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory, database: Database) -> Path:
    """What `wagtail start` makes, migrated."""
    folder = tmp_path_factory.mktemp("bakery")
    run([program("wagtail"), "start", "bakery", str(folder)], cwd=folder)
    databases = {"default": database.django()}
    local = folder / "bakery" / "settings" / "local.py"
    local.write_text(dedent(LOCAL).format(databases=databases))
    manage(folder, "migrate")
    manage(folder, "createsuperuser", "--noinput", f"--username={USER}", "--email=e@example.com")
    return folder


def manage(folder: Path, *arguments: str) -> str:
    """Run manage.py, which knows nothing of us."""
    return run(
        [sys.executable, "manage.py", *arguments],
        cwd=folder,
        env={"DJANGO_SUPERUSER_PASSWORD": PASSWORD},
    )


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 60), "brown").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_an_editor_works_and_readers_read(
    bakery: Path, mode: str, mariadb: Server, database: Database
) -> None:
    with served(
        "bakery.wsgi", "--pool-mode", mode, mariadb=mariadb, database=database, cwd=bakery
    ) as site:
        edit_and_read(site, mode)


def edit_and_read(site: Application, mode: str) -> None:
    editor = site.browser()
    answer = editor.fill_in("/admin/login/", "username", username=USER, password=PASSWORD)
    assert answer.url.endswith("/admin/"), answer.url

    home_id = max(map(int, re.findall(r"/admin/pages/(\d+)/", editor.get("/admin/pages/").text)))
    title = f"Rye bread, {mode}"
    answer = editor.fill_in(
        f"/admin/pages/add/home/homepage/{home_id}/",
        "slug",
        title=title,
        slug=f"rye-{mode}",
        **{"action-publish": "action-publish"},
    )
    assert answer.status_code == 200, answer.text
    page_id = max(map(int, re.findall(r"/admin/pages/(\d+)/edit/", answer.text)))
    assert title in editor.get(f"/rye-{mode}/").text

    answer = editor.fill_in(
        f"/admin/pages/{page_id}/edit/",
        "slug",
        title=f"{title}, sourdough",
        **{"action-publish": "action-publish"},
    )
    assert answer.status_code == 200
    assert "sourdough" in editor.get(f"/rye-{mode}/").text

    upload = BeautifulSoup(editor.get("/admin/images/multiple/add/").text, "html.parser")
    token = upload.find(attrs={"name": "csrfmiddlewaretoken"})
    assert token
    answer = editor.session.post(
        urljoin(editor.address, "/admin/images/multiple/add/"),
        {"csrfmiddlewaretoken": str(token["value"]), "title": f"loaf {mode}"},
        files={"files[]": (f"loaf-{mode}.png", picture(), "image/png")},
        headers={"X-Requested-With": "XMLHttpRequest", "Referer": editor.address},
    )
    assert answer.json()["success"], answer.text
    assert f"loaf {mode}" in editor.get("/admin/images/").text

    assert "sourdough" in editor.get("/search/?query=sourdough").text

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(site.server.get, [f"/rye-{mode}/"] * 60))
    assert {answer.status for answer in answers} == {200}
    site.assert_whole("wagtailcore_page", lambda: editor.get(f"/rye-{mode}/"))


def test_manage_py_is_as_without_us(bakery: Path) -> None:
    source = dedent("""
        from django.db import connection
        from wagtail.models import Page
        print(Page.objects.count() > 1, type(connection.connection).__module__)
    """)
    assert "True pymysql.connections" in manage(bakery, "shell", "-c", source)


def test_runserver_is_as_without_us(bakery: Path, mariadb: Server, database: Database) -> None:
    port = free_port()
    command = tied_to_us([sys.executable, "manage.py", "runserver", "--noreload", str(port)])
    with subprocess.Popen(
        command,
        cwd=bakery,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}/"
            answer: Any = None

            def answers() -> bool:
                nonlocal answer
                try:
                    answer = requests.get(address)
                except requests.ConnectionError:
                    return False
                return True

            wait_until(answers, timeout=120)
            assert answer.status_code == 200
            wait_until(lambda: not mariadb.admin.processlist(database.user))
        finally:
            process.kill()
