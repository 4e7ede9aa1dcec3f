"""Group Replication behind MySQL Router: the primary is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import servers
from support.group_replication import group, is_primary
from support.ledger import CLUSTER_VIEWS, Ledger, create_book
from support.processes import wait_until
from support.router import Router
from support.servers import Server
from support.site import Site
from support.torture import torture

READ_ONLY = 1290


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(group(tmp_path, 3))
        except servers.ServerMissing as missing:
            pytest.skip(str(missing))


def executed(server: Server) -> object:
    return server.admin.query("SELECT @@gtid_executed AS them")


@torture
def test_no_acknowledged_write_is_lost_with_the_primary(
    members: list[Server], site: Callable[..., Site], tmp_path: Path
) -> None:
    """The router takes the next one at once, which refuses writes until it is elected."""
    primary, heir, third = members
    database = primary.create_database()
    create_book(primary.admin, database)
    with Router(tmp_path, *members, client_ssl_mode="DISABLED") as router:
        shop = site(
            *("--pool-timeout", "60"),
            server=heir,
            database=database.via(router.port),
            views=CLUSTER_VIEWS,
            OPTIONS={"ssl_disabled": True},
        )
        with Ledger(shop.server.port) as ledger:
            ledger.go_on()
            primary.kill()
            wait_until(lambda: is_primary(heir), timeout=60)
            ledger.go_on(100)
        wait_until(lambda: executed(third) == executed(heir))
        for server in (heir, third):
            ledger.assert_adds_up(server.admin, database)
        refused = f'"code": {READ_ONLY},'
        others = [answer for answer in ledger.failures() if refused not in answer.text]
        assert len(others) <= shop.cap, ledger.codes()
        assert shop.pool()["timeouts_total"] == 0
        shop.fill()
