"""A new Wagtail site on MariaDB, used as an editor and as readers use it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from bs4 import BeautifulSoup
from PIL import Image

from support.ports import free_port
from support.processes import wait_until
from support.serve import Serve, environment
from support.servers import Database, Server, tied_to_us

USER, PASSWORD = "editor", "a-long-password-of-an-editor"
CAP = 3

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
    wagtail = Path(sys.executable).with_name("wagtail")
    subprocess.run([wagtail, "start", "bakery", folder], check=True, capture_output=True)
    databases = {"default": database.django()}
    local = folder / "bakery" / "settings" / "local.py"
    local.write_text(dedent(LOCAL).format(databases=databases))
    manage(folder, "migrate")
    manage(folder, "createsuperuser", "--noinput", f"--username={USER}", "--email=e@example.com")
    return folder


def manage(folder: Path, *arguments: str) -> str:
    """Run manage.py, which knows nothing of us."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=folder,
        env=environment({"DJANGO_SUPERUSER_PASSWORD": PASSWORD}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Editor:
    """A browser, as far as Wagtail's pages need one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = requests.Session()

    def get(self, path: str) -> requests.Response:
        answer = self.session.get(urljoin(self.address, path))
        assert answer.status_code == 200, (path, answer.status_code)
        return answer

    def fill_in(self, path: str, marked: str, **values: str) -> requests.Response:
        """Send the form of a page that has a field of the name `marked`."""
        page = BeautifulSoup(self.get(path).text, "html.parser")
        field = page.find(attrs={"name": marked})
        assert field, f"no field {marked} in {path}"
        form = field.find_parent("form")
        data = {
            item["name"]: item.get("value", "")
            for item in form.find_all("input")
            if item.get("name") and item.get("type") not in ("checkbox", "file", "submit")
        }
        where = urljoin(self.address, form.get("action") or path)
        return self.session.post(where, {**data, **values}, headers={"Referer": where})


@pytest.fixture(params=["request", "transaction"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(bakery: Path, mode: str) -> Iterator[Serve]:
    arguments = ("--pool-size", "2", "--max-outstanding", str(CAP), "--pool-mode", mode)
    with Serve("bakery.wsgi", *arguments, cwd=bakery, start_timeout=120) as server:
        yield server


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 60), "brown").save(file, "PNG")
    return file.getvalue()


def test_an_editor_works_and_readers_read(
    served: Serve, mode: str, mariadb: Server, database: Database
) -> None:
    editor = Editor(f"http://127.0.0.1:{served.port}/")
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
        answers = list(threads.map(served.get, [f"/rye-{mode}/"] * 60))
    assert {answer.status for answer in answers} == {200}
    wait_until(lambda: len(mariadb.admin.processlist(database.user)) <= 2)
    assert "Traceback" not in served.log


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
