"""Several workers on the tokens of one host, in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pooled_serve.pool import tokens
from pooled_serve.pool.host import Host
from pooled_serve.pool.tokens import Tokens, tokens_of
from support.driver import FakeConnection, FakeDriver


class Worker(Host):
    """A host as one worker sees it. The kernel's locks belong to processes; these do to objects, as
    if each was a process."""

    locks: dict[int, Worker]
    family: list[Worker]

    @classmethod
    def first(cls, wakeups: int = 8) -> Worker:
        worker = cls.make(wakeups)
        assert isinstance(worker, cls)
        worker.locks, worker.family = {}, [worker]
        return worker

    def another(self) -> Worker:
        worker = type(self)(self._fd, self._eventfds)
        worker.locks, worker.family = self.locks, self.family
        self.family.append(worker)
        return worker

    def lock(self, offset: int) -> bool:
        return self.locks.setdefault(offset, self) is self

    def unlock(self, offset: int) -> None:
        if self.locks.get(offset) is self:
            del self.locks[offset]

    def is_locked(self, offset: int) -> bool:
        return self.locks.get(offset, self) is not self

    def die(self) -> None:
        """As after kill -9: the kernel takes back the locks, and nothing else happens."""
        for offset in [offset for offset, owner in self.locks.items() if owner is self]:
            del self.locks[offset]

    def close(self) -> None:
        """For all of them: nobody else closes these descriptors."""
        family = set(map(id, self.family))
        for (owner, _), each_ones in list(tokens._tokens.items()):
            if owner in family:
                each_ones.after_fork_in_child()  # those of the dead still ask
        for each in self.family:
            watcher = tokens._watchers.pop(id(each), None)
            if watcher is not None:
                watcher.close()
        for fd in (self._fd, *self._eventfds):
            os.close(fd)

    def tokens(self, limit: int, alias: str = "default") -> Tokens:
        return tokens_of(self, alias, limit)


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    first = Worker.first()
    yield [first, first.another(), first.another()]
    first.close()


def trace(connection: FakeConnection) -> bytes:
    return b"%d" % connection.number


class Left(FakeConnection):
    """What another worker has left behind."""

    def __init__(self, driver: FakeDriver, text: bytes) -> None:
        super().__init__(driver, int(text))
        self.closed = True
        driver.left.append(self.number)
