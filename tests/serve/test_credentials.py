"""Passwords that change: each connect asks for the present one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from conftest import MakeProject, StartServe
from support.processes import wait_until
from support.servers import Database, Server
from support.site import VIEWS, Site

ENGINE = Path(__file__).with_name("token_engine.py")
CALLABLE = """
    def password():
        from mysite.engine.base import current_token
        return current_token({file!r})

    DATABASES["default"]["PASSWORD"] = password
"""


class Account:
    """Of a database, with a password that is replaced; the file has the one that is told."""

    def __init__(self, server: Server, database: Database, file: Path) -> None:
        self.server = server
        self.database = database
        self.file = file
        self.told: list[str] = []
        self.issue()

    def issue(self, *, tell: bool = True) -> None:
        """The one before is worth nothing from now on."""
        self.token = secrets.token_urlsafe(12)
        for host in ("127.0.0.1", "localhost"):
            self.server.admin.query(
                f"ALTER USER {self.database.user}@{host} IDENTIFIED BY %s", self.token
            )
        if tell:
            self.tell()

    def tell(self) -> None:
        self.file.write_text(self.token)
        self.told.append(self.token)

    def asked(self) -> list[str]:
        return Path(f"{self.file}.asked").read_text().split()


Start = Callable[[], Site]


@pytest.fixture
def account(mariadb: Server, database: Database, tmp_path: Path) -> Account:
    return Account(mariadb, database, tmp_path / "token")


@pytest.fixture(params=["an engine", "a callable"])
def start(
    request: pytest.FixtureRequest, account: Account, project: MakeProject, serve: StartServe
) -> Start:
    """A site with one of the two ways to ask."""

    def start() -> Site:
        file = str(account.file)
        if request.param == "an engine":
            settings, code = {"ENGINE": "mysite.engine", "OPTIONS": {"token_file": file}}, ""
        else:
            settings, code = {}, dedent(CALLABLE).format(file=file)
        databases = {"default": account.database.django(PASSWORD="", **settings)}
        folder = project(VIEWS, databases=databases, settings=code)
        engine = folder / "mysite" / "engine"
        engine.mkdir()
        (engine / "__init__.py").touch()
        (engine / "base.py").write_text(ENGINE.read_text())
        server = serve(folder, "--pool-size", "2", "--max-outstanding", "2")
        return Site(server, account.server.admin, account.database, 2)

    return start


def hang_up(shop: Site) -> None:
    for number in shop.connection_ids():
        shop.admin.kill(number)
    wait_until(lambda: not shop.connection_ids())


def test_each_connect_asks_for_the_password_of_the_moment(start: Start, account: Account) -> None:
    shop = start()
    assert "default: MariaDB" in shop.server.log, "the preflight has asked, too"
    for _ in range(4):
        account.issue()
        hang_up(shop)
        assert [shop.run("SELECT 1").status for _ in range(3)] == [200] * 3
    stats = shop.pool()
    assert stats["connect_errors_total"] == 0
    assert stats["opened_total"] == 4
    assert set(account.asked()) == set(account.told)
    assert len(account.asked()) >= 5
    for token in account.told:
        assert token not in shop.server.log
    shop.assert_whole()


def test_a_password_that_is_out_of_date_costs_no_slot(start: Start, account: Account) -> None:
    shop = start()
    account.issue(tell=False)
    assert [shop.run("SELECT 1").status for _ in range(3)] == [500] * 3
    account.tell()
    shop.wait_until_served()
    account.file.unlink()  # the service that issues them cannot be reached
    hang_up(shop)
    assert shop.run("SELECT 1").status == 500
    account.tell()
    shop.wait_until_served()
    shop.assert_whole()
