"""Start a MariaDB or MySQL server of one's own: a data directory, a port and a socket that nothing
else uses, stopped together with the program that started it. Standard library only.

    with PrivateDatabase("/tmp/somewhere") as database:
        print(database.url())

It is tuned to start and stop fast and to forget the last second on a power cut: for demonstrations,
tests and benchmarks, not for data that matters.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

# Where servers live that are not on an ordinary user's PATH.
SERVER_FOLDERS = ("/usr/sbin", "/usr/libexec", "/usr/local/mysql/bin")

START_TIMEOUT = 60.0  # seconds; a busy machine needs a few
STOP_TIMEOUT = 30.0

USER = "shop"


class DatabaseError(Exception):
    """The server could not be set up or started; str() is one line that says why."""


def find_server() -> Path | None:
    """The MariaDB or MySQL server program of this machine, if it has one."""
    return _find_program("mariadbd", "mysqld")


def _find_program(*names: str, beside: tuple[Path, ...] = ()) -> Path | None:
    folders = [*beside, *os.environ.get("PATH", os.defpath).split(os.pathsep), *SERVER_FOLDERS]
    path = os.pathsep.join(map(str, folders))
    found = (shutil.which(name, path=path) for name in names)
    return next((Path(program) for program in found if program), None)


def tied_to_us(command: Sequence[str]) -> list[str]:
    """The same command, which gets SIGTERM when this program dies.

    A context manager stops a child in every case but one: nothing of ours runs after a SIGKILL, and
    the child would go on for ever. Linux can mind it then, at the end of the *thread* that started
    it: start it from one that lasts. The child must ask for that itself, so a few lines of Python
    do, and then become the command. (Popen's preexec_fn is not safe in a program with threads.)
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    set_parent_death_signal = 1
    program = (
        "import ctypes, os, sys\n"
        f"ctypes.CDLL(None).prctl({set_parent_death_signal}, {int(signal.SIGTERM)})\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-ISc", program, *command]


class PrivateDatabase:
    """A server whose data lives in `directory` and is still there at the next start.

    `extra_options` are appended to the server's command line: ("--max-connections=20",).
    `server` is the program to run instead of the one find_server() finds.
    """

    port: int
    socket: Path

    def __init__(
        self,
        directory: Path | str,
        *,
        extra_options: Sequence[str] = (),
        server: Path | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.extra_options = extra_options
        self.server = server or find_server()
        self.port = _free_port()
        # Not in `directory`: the path of a Unix socket may have no more than about 100 bytes.
        folder = f"private-database-{secrets.token_hex(8)}"
        self.socket = Path(tempfile.gettempdir(), folder, "mysql.sock")
        self._password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id, None when it does not run."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def url(self, database: str = "shop") -> str:
        """For a user who may do everything with the databases `shop` and `test_...`, over TCP."""
        return f"mysql://{USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def admin_url(self, database: str = "mysql") -> str:
        """For root, over the Unix socket, which is in a folder that is ours alone."""
        path = quote(str(self.socket))
        return f"mysql://root:{self._password}@localhost/{database}?unix_socket={path}"

    def start(self) -> None:
        """Return when the server answers. Raise DatabaseError if it does not come up."""
        if self.server is None:
            raise DatabaseError("there is no MariaDB or MySQL server on this machine")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_directory()
        try:
            self.socket.parent.mkdir(mode=0o700)
            if not self._data.exists():
                self._create_data()
            self._run_server()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut the server down in good order; kill it only if it takes for ever."""
        if self._process:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """End the server at once, as a crash would. Its data directory survives that."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self.socket.parent, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restart(self) -> None:
        """Stop and start: same port, same socket, same password, all connections gone."""
        self.stop()
        self.start()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _environment(self) -> dict[str, str]:
        """With a folder of its own for temporary tables: a server that starts deletes those that
        it finds, and in /tmp they may belong to another server, whose queries fail then."""
        folder = self.directory / "tmp"
        folder.mkdir(mode=0o700, exist_ok=True)
        return {**os.environ, "TMPDIR": str(folder)}

    def _take_directory(self) -> None:
        """Two servers on the same data would wait for each other's locks for minutes."""
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise DatabaseError(f"{self.directory} is in use by another program") from None
        self._lock = lock

    def _create_data(self) -> None:
        """Let the server's own tool make the system tables."""
        server = self.server
        assert server, "start() looks for it"
        # Under another name first, so that what an interrupted run leaves is not taken for data.
        unfinished = self.directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if _is_mariadb(server):
            installer = _find_program(
                "mariadb-install-db",
                "mysql_install_db",
                beside=(server.parent, server.parent.parent / "scripts"),
            )
            if installer is None:
                raise DatabaseError(f"{server} is there, but mariadb-install-db is not")
            # --force: do not insist on a host name that can be looked up.
            command = [str(installer), "--no-defaults", "--force", "--skip-test-db"]
        else:
            command = [str(server), "--no-defaults", "--initialize-insecure", self._files]
        command += [f"--datadir={unfinished}", *self._as_root]
        with self._log.open("wb") as log:
            done = subprocess.run(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode != 0:
            raise DatabaseError(f"{command[0]} failed: {self._why()}")
        unfinished.rename(self._data)

    @property
    def _files(self) -> str:
        """MySQL wants the folder for LOAD DATA to exist, which the one a package sets need not."""
        return f"--secure-file-priv={self.directory}"

    @property
    def _as_root(self) -> list[str]:
        """Servers refuse to run as root unless told that this is what you want."""
        # Not --user=root: mariadb-install-db would change owners under /usr as well then.
        return ["-uroot"] if os.geteuid() == 0 else []

    def _run_server(self) -> None:
        setup = self.directory / "setup.sql"
        setup.touch(mode=0o600)
        setup.write_text(self._setup_sql())
        command = [
            str(self.server),
            "--no-defaults",  # must come first; keeps the host's own settings out
            *self._as_root,
            self._files,
            f"--datadir={self._data}",
            f"--socket={self.socket}",
            f"--pid-file={self.directory / 'server.pid'}",
            f"--init-file={setup}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-log-bin",
            "--skip-name-resolve",
            "--loose-mysqlx=0",  # MySQL's second protocol has a port of its own
            "--character-set-server=utf8mb4",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            *self.extra_options,
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                tied_to_us(command),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal goes to the whole group. We decide when the server stops:
                # after those who use it.
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers()
        finally:
            setup.unlink()

    def _setup_sql(self) -> str:
        """Run by the server at every start, before it lets anyone in; one statement a line.

        The password is a new one each time, so none needs to be kept on disk.
        """
        lines = [
            "CREATE DATABASE IF NOT EXISTS shop CHARACTER SET utf8mb4;",
            f"ALTER USER root@localhost IDENTIFIED BY '{self._password}';",
        ]
        for account in (f"{USER}@localhost", f"{USER}@127.0.0.1"):
            lines += [
                f"CREATE USER IF NOT EXISTS {account};",
                f"ALTER USER {account} IDENTIFIED BY '{self._password}';",
                f"GRANT ALL ON shop.* TO {account};",
                # Django's test runner makes its own databases.
                f"GRANT ALL ON `test\\_%`.* TO {account};",
            ]
        return "\n".join([*lines, ""])

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.pid is None:
                raise DatabaseError(f"{self.server} stopped at once: {self._why()}")
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection,
            ):
                # It listens long before it accepts; its greeting tells that it is ready.
                if connection.recv(1):
                    return
            time.sleep(0.05)
        raise DatabaseError(f"{self.server} does not answer after {START_TIMEOUT:.0f} s")

    def _why(self) -> str:
        """The last complaint in the log, or else its last line."""
        lines = self._log.read_text(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        complaints = [line for line in lines if "ERROR" in line and "Aborting" not in line]
        return (complaints or lines or ["it said nothing"])[-1]


def _is_mariadb(server: Path) -> bool:
    version = subprocess.run([server, "--version"], capture_output=True, check=False)
    return b"MariaDB" in version.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
