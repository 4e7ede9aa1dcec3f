"""Tokens of a host belong to processes, and the kernel takes back what a dead one had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pooled_serve.pool.area import MAX_SLOTS, TRACE_BYTES, Area
from pooled_serve.pool.host import MAX_AREAS, Host
from pooled_serve.pool.tokens import Tokens
from support.processes import forked, wait_until

LIMIT = 3


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host.make(4)
    yield host
    for fd in (host._fd, *host._eventfds):  # nobody else closes them
        os.close(fd)


def take_all(area: Area) -> list[int]:
    taken = []
    while (token := area.take(LIMIT, search=True)) is not None:
        taken.append(token)
    return taken


def test_there_are_as_many_tokens_as_the_bound(host: Host) -> None:
    area = host.area("default")
    assert take_all(area) == [0, 1, 2]
    assert area.taken() == LIMIT
    assert not area.has_free(LIMIT)
    area.give_back(1)
    assert area.has_free(LIMIT)
    assert area.take(LIMIT, search=False) == 1
    assert host.stats(LIMIT, {os.getpid()})["default"] == {
        "limit": 3,
        "taken": 3,
        "taken_elsewhere": 0,
        "hungry": 0,
        "trades_total": 0,
    }


def test_what_is_given_back_with_a_trace_is_free(host: Host) -> None:
    """As in an outage, when nothing can be ended at the server."""
    area, tokens = host.area("default"), Tokens(host.area("default"), LIMIT)
    for token in take_all(area):
        area.write_trace(token, b"connection")
    assert tokens.describe() == "this host's 3 are taken, 3 of them by this worker"
    for token in range(LIMIT):
        area.give_back(token, keep_trace=True)
    assert area.taken() == 0
    assert tokens.describe() == ""

    def take() -> None:
        take_all(host.area("default"))

    with forked(take):
        assert tokens.describe() == "this host's 3 are taken, 0 of them by this worker"
    assert tokens.describe() == "", "it was killed"


def test_processes_share_them(host: Host) -> None:
    area = host.area("default")
    assert area.take(LIMIT, search=False) == 0
    with forked(lambda: exit_unless(host.area("default").take(LIMIT, search=False) == 1)):
        assert take_all(area) == [2]
        assert area.taken() == LIMIT


def test_kill_9_gives_them_back_and_leaves_what_the_next_owner_must_know(host: Host) -> None:
    area = host.area("default")

    def connect() -> None:
        mine = host.area("default")
        for token in take_all(mine):
            mine.write_trace(token, b"connection %d" % token)

    with forked(connect) as pid:
        assert take_all(area) == []
        assert host.others() == [1]
    assert pid
    assert area.taken() == 0
    assert area.take(LIMIT, search=False) is None, "to look for them costs a system call each"
    assert take_all(area) == [0, 1, 2]
    assert [area.trace(token) for token in range(3)] == [
        b"connection 0",
        b"connection 1",
        b"connection 2",
    ]
    area.give_back(0)
    area.give_back(1, keep_trace=True)
    assert (area.trace(0), area.trace(1)) == (b"", b"connection 1")
    host.retire(pid)
    assert host.others() == []


def test_who_takes_the_slot_of_a_dead_worker_does_not_hide_what_that_had(host: Host) -> None:
    def take() -> None:
        take_all(host.area("default"))

    with forked(take):
        pass
    assert host.slot == 1
    assert take_all(host.area("default")) == [0, 1, 2]


def test_a_forked_child_owns_nothing_and_takes_nothing_away(host: Host) -> None:
    area = host.area("default")
    assert area.take(LIMIT, search=False) == 0
    slot = host.slot

    def look() -> None:
        assert host.area("default").owned == set()
        assert host.slot != slot
        assert take_all(host.area("default")) == [1, 2]

    with forked(look):
        assert take_all(area) == []
    assert take_all(area) == [1, 2]
    area.give_back(0)


def test_only_one_may_have_a_connection_more(host: Host) -> None:
    area = host.area("default")
    one, other = object(), object()

    def begin() -> None:
        assert host.area("default").begin_replacing(one)

    with forked(begin):
        assert not area.begin_replacing(one)
    assert area.begin_replacing(one)
    assert area.begin_replacing(one)
    assert not area.begin_replacing(other), "nor another pool of this process"
    area.end_replacing(other)
    assert not area.begin_replacing(other)
    area.end_replacing(one)
    with forked(begin):
        assert not area.begin_replacing(one)


def test_a_program_that_replaces_this_one_shares_them(host: Host) -> None:
    area = host.area("default")
    assert area.take(LIMIT, search=False) == 0
    host.slot  # noqa: B018 - taken when first asked for
    script = (
        "import sys; from pooled_serve.pool.host import Host; host = Host.inherit(sys.argv[1]);"
        "area = host.area('default');"
        "print(area.take(3, search=True), area.take(3, search=True), area.take(3, search=True),"
        " host.slot)"
    )
    text = host.pass_on()
    fds = tuple(map(int, text.split(",")))
    said = subprocess.run(
        [sys.executable, "-c", script, text], pass_fds=fds, check=True, capture_output=True
    )
    assert said.stdout == b"1 2 None 2\n"


@pytest.mark.parametrize("text", ["", "x", "0", "99999", "0,1"])
def test_what_was_not_passed_on_is_not_inherited(text: str) -> None:
    assert Host.inherit(text) is None


def test_databases_have_tokens_of_their_own_as_long_as_there_are_any(host: Host) -> None:
    areas = [host.area(f"tenant{i}") for i in range(MAX_AREAS + 2)]
    assert len({area.index for area in areas}) == MAX_AREAS
    assert areas[-3] is areas[-2] is areas[-1], "the last ones share"
    assert [area.take(LIMIT, search=False) for area in areas[-5:]] == [0, 0, 0, 1, 2]
    assert host.area("tenant0") is areas[0]


def test_long_names_of_databases(host: Host) -> None:
    one, other = host.area("é" * 50), host.area("é" * 60)
    assert one is other, "they are cut, and then share"
    assert host.stats(LIMIT).keys() == {"é" * 47}


def test_to_search_takes_a_system_call_for_each_process_not_for_each_token(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    is_locked, lock = Host.is_locked, Host.lock

    def counted(self: Host, offset: int) -> bool:
        asked.append(offset)
        return is_locked(self, offset)

    def counted_lock(self: Host, offset: int) -> bool:
        asked.append(offset)
        return lock(self, offset)

    def take_many() -> None:
        assert [host.area("default").take(100, search=False) for _ in range(100)]

    with forked(take_many):
        host.slot  # noqa: B018 - taken when first asked for
        area = host.area("default")
        monkeypatch.setattr(Host, "is_locked", counted)
        monkeypatch.setattr(Host, "lock", counted_lock)
        assert area.take(100, search=True) is None
        assert len(asked) == 1
        assert not area.has_free(100)
        assert len(asked) == 1
    assert area.take(100, search=True) == 0


def test_who_opens_a_file_at_the_same_time_as_others_finds_it_whole(tmp_path: Path) -> None:
    for number in range(20):
        path = str(tmp_path / f"host{number}")
        go, says = os.pipe()

        def open_it() -> None:
            os.close(says)  # noqa: B023
            os.read(go, 1)  # noqa: B023  until all are there
            Host.open(path)  # noqa: B023

        children = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                try:
                    open_it()
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
        os.close(go)
        os.close(says)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4


def test_a_file_that_is_something_else_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "host"
    first = Host.open(str(path))
    assert first.area("default").take(LIMIT, search=False) == 0
    path.write_bytes(b"something else")
    with pytest.raises(OSError, match="something else"):
        Host.open(str(path))


def test_a_trace_that_was_not_written_whole_is_none(host: Host) -> None:
    area = host.area("default")
    for text in (b"x" * (TRACE_BYTES - 1), b"", b"y"):
        area.write_trace(0, text)
        assert area.trace(0) == text
    assert area.trace(1) == b""


def test_a_worker_is_woken(host: Host) -> None:
    assert host.wakeup == host._eventfds[host.slot - 1]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(host.wakeup)
    for _ in range(3):
        host.wake(host.slot)
    assert os.eventfd_read(host.wakeup) == 3
    host.wake(0)
    host.wake(MAX_SLOTS)
    host.wake_others()


def test_others_are_woken_when_a_worker_dies(host: Host) -> None:
    fd = host.wakeup
    with forked(lambda: exit_unless(host.slot == 2)) as pid:
        assert host.others() == [2]
        host.retire(pid)  # it is not dead yet
        assert host.others() == [2]
    host._slot = 0  # as in the master, who has no slot
    host.retire(pid)
    assert os.eventfd_read(fd) == 1
    wait_until(lambda: host.others() == [1])


def exit_unless(condition: bool) -> None:
    if not condition:
        os._exit(1)
