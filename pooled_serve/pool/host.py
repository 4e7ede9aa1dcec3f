"""The bound of a host, kept where the kernel takes back what a dead worker had.

A *token* is the right to one connection to a database. There are as many as the host may have
connections, and each is a byte of an anonymous file that the master makes before it forks: who has
locked the byte owns the token. Locks of the fcntl() kind belong to a process, are not inherited by
its children, and end with it, however it ends: nobody has to repair a counter after ``kill -9``.
They also end when the process closes *any* descriptor of the file, so there is one that is never
closed, and one inside the mapping.

The file is also memory that all workers share, for what is only a hint, and for what the next owner
of a token must know:

* who owns each token, so that taking one that is free costs one system call, not one for each;
* the *trace* of its connection. The kernel frees the token of a worker that dies at once, while the
  server goes on with its statement: the next owner ends that first;
* which workers wait for a token, since when, and for how many.

Every number has one writer at a time, and is written as one word. Each process has a *slot*, which
is a locked byte as well. Workers are woken through an eventfd for each slot; one that has none (the
master makes a limited number) finds out by looking.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import weakref
from collections.abc import Container, Iterator

from gevent.monkey import get_original

from pooled_serve.pool.area import AREA_BYTES, LOCKS_PER_AREA, MAX_SLOTS, NAME, SLOTS, Area

MAX_AREAS = 64
"""Databases with tokens of their own. All others share those of the last area: together they have
no more than the bound."""

_FLOCK = struct.Struct("hhlli4x" if struct.calcsize("l") == 8 else "hhqqi")  # struct flock

_WORD = 8
_MAGIC = b"pooled-serve 1\0\0"
_HEAD_BYTES = len(_MAGIC) + SLOTS * _WORD
_FILE_BYTES = _HEAD_BYTES + MAX_AREAS * AREA_BYTES

_sleep = get_original("time", "sleep")  # callers must not switch greenlets

# Where the locked bytes are: behind the memory, because locks have nothing to do with its contents.
_SLOT_LOCKS = _FILE_BYTES
_NAMES_LOCK = _SLOT_LOCKS + SLOTS
_AREA_LOCKS = _NAMES_LOCK + 1


class Host:
    """Made by the master, once, before it forks.

    :param fd: of the file.
    :param eventfds: for the slots, from 1 on.
    """

    @classmethod
    def make(cls, wakeups: int) -> Host:
        """Returns a new one.

        :param wakeups: how many workers can be woken; the others look.
        :raises OSError: there is no memory or no descriptor left.
        """
        fd = os.memfd_create("pooled-serve")
        _format(fd)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        return cls(fd, [os.eventfd(0, flags) for _ in range(min(wakeups, MAX_SLOTS))])

    @classmethod
    def open(cls, path: str) -> Host:
        """Returns the host of all processes that open this file, which is made if it is not there.
        None of them can be woken.

        :raises OSError: it cannot be used, or belongs to somebody else.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to somebody else", path)
            # Waits for another worker that has just made it.
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, _NAMES_LOCK)
            if not os.fstat(fd).st_size:
                _format(fd)
            elif not _is_ours(fd):
                raise OSError(errno.EEXIST, "it is something else", path)
        except BaseException:
            os.close(fd)
            raise
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, _NAMES_LOCK)
        return cls(fd, [])

    def __init__(self, fd: int, eventfds: list[int]) -> None:
        self._fd = fd
        self._eventfds = eventfds
        self._memory = mmap.mmap(fd, _FILE_BYTES)
        view = memoryview(self._memory)
        self._pids = view[len(_MAGIC) : _HEAD_BYTES].cast("d")
        self._areas: dict[str, Area] = {}
        self._slot = 0
        _hosts.add(self)

    # --- Another master, after USR2 ------------------------------------------------------------

    def pass_on(self) -> str:
        """Returns what a program that this process is about to become needs for :meth:`inherit`."""
        fds = [self._fd, *self._eventfds]
        for fd in fds:
            os.set_inheritable(fd, True)  # noqa: FBT003 - it takes no keyword
        return ",".join(map(str, fds))

    @classmethod
    def inherit(cls, text: str) -> Host | None:
        """Returns the host of the program that this process was before; None if it has none."""
        try:
            fd, *eventfds = map(int, text.split(","))
            if not _is_ours(fd):
                return None
            for each in (fd, *eventfds):
                os.set_inheritable(each, False)  # noqa: FBT003
        except (ValueError, OSError):
            return None
        return cls(fd, eventfds)

    # --- Locks ---------------------------------------------------------------------------------

    def lock(self, offset: int) -> bool:
        """Lock a byte. Returns False if another process has locked it. A process can lock a byte
        twice, so the caller must know which ones are its own."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
        return True

    def unlock(self, offset: int) -> None:
        """Unlock a byte of this process."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, offset)

    def is_locked(self, offset: int) -> bool:
        """Whether another process has locked a byte."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)

    # --- Slots ---------------------------------------------------------------------------------

    @property
    def slot(self) -> int:
        """This process's, taken when it is first asked for; 0 if all are taken."""
        if not self._slot:
            for slot in range(1, SLOTS):
                if self.lock(_SLOT_LOCKS + slot):
                    self._forget(slot)
                    self._pids[slot] = os.getpid()
                    self._slot = slot
                    self.show_slot()
                    break
        return self._slot

    def show_slot(self) -> None:
        """Let the others look as far as this process's slot: the first word is the highest one.

        Two processes may raise it at the same time, so each does so again when it matters.
        """
        if self._pids[0] < self._slot:
            self._pids[0] = self._slot

    @property
    def wakeup(self) -> int:
        """The eventfd that becomes readable when this process is woken; -1 if it has none."""
        slot = self.slot
        return self._eventfds[slot - 1] if 0 < slot <= len(self._eventfds) else -1

    def wake(self, slot: int) -> None:
        """Wake the process that has this slot, if there is one."""
        if 0 < slot <= len(self._eventfds):
            with contextlib.suppress(BlockingIOError):  # it has been woken often enough
                os.eventfd_write(self._eventfds[slot - 1], 1)

    def wake_others(self) -> None:
        """Wake all other processes."""
        for slot in self.others():
            self.wake(slot)

    def others(self) -> list[int]:
        """Returns the slots of the other processes, and perhaps of some that have died."""
        own, pids = self._slot, self._pids
        shown = pids[1 : int(pids[0]) + 1].tolist()
        return [slot for slot, pid in enumerate(shown, 1) if pid and slot != own]

    def is_alive(self, slot: int) -> bool:
        """Whether there is another process with this slot."""
        return self.is_locked(_SLOT_LOCKS + slot)

    def lives(self, slot: int) -> bool:
        """The same, and forgets the process if it has died."""
        if not self.lock(_SLOT_LOCKS + slot):
            return True
        self._forget(slot)
        self.unlock(_SLOT_LOCKS + slot)
        return False

    def retire(self, pid: int) -> None:
        """Forget a worker that has died, and wake the others: its tokens are free."""
        for slot in self.others():
            if self._pids[slot] == pid and not self.lives(slot):
                self.wake_others()

    def _forget(self, slot: int) -> None:
        """The process with this slot, which is locked, has died."""
        self._pids[slot] = 0.0
        for area in self._named():
            area.orphan(slot)

    def after_fork_in_child(self) -> None:
        """Slot and tokens are the parent's; the child takes its own when it needs them."""
        self._slot = 0
        for area in self._areas.values():
            area.owned.clear()
            area.replacer = None

    # --- Areas ---------------------------------------------------------------------------------

    def area(self, alias: str) -> Area:
        """Returns the tokens of a database, which all processes find by its alias."""
        area = self._areas.get(alias)
        if area is None:
            area = self._areas[alias] = self._find(alias)
        return area

    def _find(self, alias: str) -> Area:
        packed = NAME.pack(alias.encode())
        area = self._area_at(MAX_AREAS - 1)
        for _ in range(1000):  # another process may have the lock, for some microseconds
            if self.lock(_NAMES_LOCK):
                break
            _sleep(0.001)
        else:
            return area  # that process was stopped
        try:
            for area in map(self._area_at, range(MAX_AREAS)):
                known = area.packed_name
                if known == packed or not known[0]:
                    area.packed_name = packed
                    break
        finally:
            self.unlock(_NAMES_LOCK)
        # Two names may share an area, and then they share what this process knows of it.
        return next((other for other in self._areas.values() if other.index == area.index), area)

    def _area_at(self, index: int) -> Area:
        offset = _HEAD_BYTES + index * AREA_BYTES
        locks = _AREA_LOCKS + index * LOCKS_PER_AREA
        return Area(self, self._memory, index, offset, locks)

    def _named(self) -> Iterator[Area]:
        for index in range(MAX_AREAS):
            area = self._area_at(index)
            if not area.packed_name[0]:
                return
            yield area

    def stats(self, limit: int, workers: Container[int] = ()) -> dict[str, dict[str, int]]:
        """Returns alias -> numbers, of the databases that processes of the host have pools for.

        :param limit: how many tokens there are.
        :param workers: the process ids of this instance's. After USR2 there are those of another.
        """
        found = {}
        for area in self._named():
            known = next((each for each in self._areas.values() if each.index == area.index), area)
            (name,) = NAME.unpack(area.packed_name)
            owners = [int(self._pids[slot]) if slot < SLOTS else 0 for slot in known.owners()]
            found[name.decode("utf-8", "ignore")] = {
                "limit": limit,
                "taken": len(owners),
                "taken_elsewhere": sum(pid > 0 and pid not in workers for pid in owners),
                "hungry": sum(since > 0 for since in known.since),
                "trades_total": int(sum(known.lent)),
            }
        return found


def _format(fd: int) -> None:
    os.ftruncate(fd, _FILE_BYTES)
    os.pwrite(fd, _MAGIC, 0)


def _is_ours(fd: int) -> bool:
    return os.pread(fd, len(_MAGIC), 0) == _MAGIC and os.fstat(fd).st_size == _FILE_BYTES


_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


def _forget_in_child() -> None:
    for host in list(_hosts):
        host.after_fork_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
