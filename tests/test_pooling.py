"""set_pool_size() and apply_patch(), for people who keep their own launcher."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pooled_serve import __version__, pooling
from pooled_serve.errors import StartupError
from support.client import BoundWatch
from support.command import run
from support.processes import wait_until
from support.script import run_function
from support.serve import GUNICORN, Response
from support.servers import Database, Server

SCRIPTS = "pooling_scripts.py"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0,), "0"),
        ((-1,), "-1"),
        ((4, 3), r"max_outstanding \(3\)"),
        ((4, 0), "0"),
        ((4, None, 0), "0"),
        ((4, None, -1), "-1"),
        (("many",), "many"),
    ],
)
def test_set_pool_size_refuses_numbers_that_make_no_sense(
    arguments: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        pooling.set_pool_size(*arguments)
    assert not pooling._explicit


def test_none_means_no_limit_as_with_the_ancestor(script: Any) -> None:
    peak, idle = script(
        "none_means_no_limit_as_with_the_ancestor",
        cap=None,
    )
    assert peak == 30
    assert idle == 2


def test_plain_python_without_gevents_patches_is_pooled_and_says_goodbye(
    project: Any, mariadb: Server, database: Database
) -> None:
    before = mariadb.admin.aborted_clients()
    run_function(
        project(databases={"default": database.django()}),
        SCRIPTS,
        "plain_python_without_gevents_patches_is_pooled_and_says_goodbye",
        gevent=False,
    )
    assert mariadb.admin.aborted_clients() == before


POOL = Path(__file__).with_name("pooling_views.py")

APPLY = """
from pooled_serve import __version__, pooling
pooling.set_pool_size(1, max_outstanding=3)
pooling.apply_patch()
"""


@pytest.mark.parametrize("where", ["wsgi", "settings", "app"])
def test_apply_patch_may_stand_anywhere_under_plain_gunicorn(
    where: str, project: Any, serve: Any, database: Database, mariadb: Server
) -> None:
    before = mariadb.admin.aborted_clients()
    folder = project(POOL, databases={"default": database.django(CONN_MAX_AGE=60)})
    package = folder / "mysite"
    if where == "app":
        body = "".join(f"        {line}\n" for line in APPLY.strip().splitlines())
        (package / "apps.py").write_text(
            "from django.apps import AppConfig\n\n"
            "class Config(AppConfig):\n    name = 'mysite'\n    def ready(self):\n" + body
        )
        with (package / "settings.py").open("a") as settings:
            settings.write("INSTALLED_APPS = ['mysite.apps.Config']\n")
    else:
        module = package / f"{where}.py"
        module.write_text(
            APPLY + module.read_text() if where == "wsgi" else module.read_text() + APPLY
        )
    web = serve(folder, "-k", "gevent", command=GUNICORN, env={"POOLED_SERVE_POOL_TIMEOUT": "7"})
    with web.keepalive() as first, web.keepalive() as second:
        answers = [client.get("/one").json() for _ in range(3) for client in (first, second)]
    assert {answer["id"] for answer in answers} == {answers[0]["id"]}
    assert {(answer["size"], answer["cap"], answer["timeout"]) for answer in answers} == {
        (1, 3, 60)  # what is said in the project ranks above the environment
    }
    web.stop()
    assert mariadb.admin.aborted_clients() == before


def test_the_environment_says_what_set_pool_size_did_not(project: Any, serve: Any) -> None:
    folder = project(POOL)
    wsgi = folder / "mysite" / "wsgi.py"
    wsgi.write_text("from pooled_serve import pooling\npooling.apply_patch()\n" + wsgi.read_text())
    web = serve(
        folder,
        "-k",
        "gevent",
        command=GUNICORN,
        env={"POOLED_SERVE_POOL_SIZE": "3", "POOLED_SERVE_POOL_TIMEOUT": "7"},
    )
    answer = web.get("/one").json()
    assert (answer["size"], answer["cap"], answer["timeout"]) == (3, 9, 7)


def test_workers_of_a_plain_gunicorn_share_a_bound(
    project: Any, serve: Any, start_mariadb: Any
) -> None:
    mariadb = start_mariadb()
    database = mariadb.create_database()
    folder = project(POOL, databases={"default": database.django()})
    wsgi = folder / "mysite" / "wsgi.py"
    wsgi.write_text("from pooled_serve import pooling\npooling.apply_patch()\n" + wsgi.read_text())
    meeting = pooling.SHARED_MEMORY / f"pooled-serve-{os.geteuid()}"
    meeting.mkdir(mode=0o700, exist_ok=True)
    space = f"{__version__}-{os.stat('/proc/self/ns/pid').st_ino}-"
    ended = meeting / f"{space}1-1"  # PID 1 has not begun then
    ended.touch()
    of_others = meeting / "0.0-1-1-1"  # in a container with the same folder, perhaps
    of_others.touch()
    web = serve(
        folder,
        *("-k", "gevent", "-w", "3"),
        command=GUNICORN,
        env={"POOLED_SERVE_MAX_PER_HOST": "2"},
    )
    answers: list[Response] = []

    def all_have_served() -> bool:
        answers.extend(threads.map(web.get, ["/nap"] * 18))
        return len({answer.text for answer in answers}) == 3

    with BoundWatch(mariadb, database) as watch, ThreadPoolExecutor(9) as threads:
        wait_until(all_have_served)  # one may start later than the others
        answers.extend(threads.map(web.get, ["/nap"] * 18))
    assert {answer.status for answer in answers} == {200}
    assert 0 < watch.peak <= 2
    (ours,) = meeting.glob(f"{space}{web.master_pid}-*")
    ours.unlink()
    assert not ended.exists()
    of_others.unlink()


@pytest.mark.parametrize("parent", [0, 1])
def test_init_is_the_parent_of_strangers(
    parent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    pooling._host_of_siblings.cache_clear()
    assert pooling._host_of_siblings() is pooling._host_of_siblings()
    pooling._host_of_siblings.cache_clear()
    (path,) = tmp_path.rglob("*-*-*-*")
    assert f"-{os.getpid()}-" in path.name


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "SHARED_MEMORY", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"pooled-serve-{os.geteuid()}").symlink_to("elsewhere")
    with pytest.raises(PermissionError):
        pooling._host_of_siblings()


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("import sys, types; sys.modules['MySQLdb'] = types.ModuleType('MySQLdb')", "PS502"),
        (
            "from django.db.utils import ConnectionHandler\n"
            "ConnectionHandler.create_connection = lambda self, alias: None",
            "PS503",
        ),
    ],
)
def test_apply_patch_refuses_what_it_cannot_live_with(
    before: str, code: str, tmp_path: Path
) -> None:
    source = f"{before}\nfrom pooled_serve import pooling\npooling.apply_patch()"
    done = run("-c", source, cwd=tmp_path, command=(sys.executable,))
    assert done.code == 1
    assert f"{StartupError.__name__}: {code}" in done.output


def test_without_apply_patch_nothing_is_pooled(project: Any, mariadb: Server) -> None:
    database = mariadb.create_database()
    folder = project(databases={"default": database.django()})
    source = dedent("""
        import pymysql; pymysql.install_as_MySQLdb()
        import pooled_serve.pooling, pooled_serve.options, pooled_serve.errors, pooled_serve.pool
        import django; django.setup()
        from django.core.management import call_command
        from django.db import connections
        call_command("check", databases=["default"])
        call_command("inspectdb")
        wrapper = connections["default"]
        assert type(wrapper).__module__ == "django.db.backends.mysql.base"
        assert type(wrapper.connection).__module__ == "pymysql.connections"
    """)
    done = run(
        "-c",
        source,
        cwd=folder,
        command=(sys.executable,),
        env={"DJANGO_SETTINGS_MODULE": "mysite.settings"},
    )
    assert done.code == 0, done.output
