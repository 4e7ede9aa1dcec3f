#!/usr/bin/env python3
"""Try pooled-serve: one command from a fresh checkout to a running shop.

    python3 examples/quickstart.py
    python3 examples/quickstart.py --clean    removes what that has left
    python3 examples/quickstart.py --max-outstanding 20    passes that on to pooled-serve

It makes a virtual environment in the project's folder, installs the project there, starts a private
MariaDB or MySQL server (or takes the one in $DATABASE_URL), fills the example shop and serves it
with pooled-serve. Ctrl-C stops all it started. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

if sys.version_info < (3, 11):  # noqa: UP036 (whatever python3 is here runs this file)
    sys.exit("quickstart: Python 3.11 or newer is needed\n→ run it with a newer python3")

from private_database import DatabaseError, PrivateDatabase, find_server, tied_to_us

ROOT = Path(__file__).resolve().parent.parent
SHOP = ROOT / "examples" / "shop"
STATE = ROOT / ".quickstart"
ENV_FILE = STATE / "env"

STAMP = "pooled-serve-installed.toml"  # in a virtual environment that this program has made

FIRST_PORT = 8000
BOOT_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 15.0

say = partial(print, flush=True)


class Problem(Exception):
    """Why we cannot go on, and what the reader can do about it: one line each."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"quickstart: {problem}\n→ {remedy}")


def main() -> int:
    options = parse_options()
    if options.clean:
        return clean(options.venv.absolute())
    stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in stop_signals:
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as cleanup:
            try:
                run(options, cleanup)
            finally:
                # An impatient second Ctrl-C must not leave a database server behind.
                for number in stop_signals:
                    signal.signal(number, signal.SIG_IGN)
    except Problem as problem:
        say(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    say(what_is_left(options.venv.absolute()))
    say("Stopped.")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Install pooled-serve and serve the example shop with it. DATABASE_URL "
        "(mysql://user:password@host:port/name) names a server of your own to use.",
        epilog="All other options go to pooled-serve, as in --max-outstanding 20.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--venv",
        type=Path,
        default=ROOT / ".venv",
        metavar="DIR",
        help="where to install; default: .venv in the project's folder",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="of the shop; default: 8000 or the next free one"
    )
    parser.add_argument(
        "--status-port",
        type=int,
        metavar="N",
        help="of the status page; default: the one after --port, or the next free one",
    )
    parser.add_argument(
        "-w", "--workers", type=int, default=1, metavar="N", help="that share the connections"
    )
    parser.add_argument(
        "--products",
        type=int,
        default=10_000,
        metavar="N",
        help="that an empty shop is filled with; default: 10000",
    )
    parser.add_argument("--clean", action="store_true", help="remove what it has made, and stop")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after that long")
    parser.add_argument(
        "--no-install",
        action="store_true",
        help="install nothing, neither with apt-get nor with pip: use what is here and in --venv",
    )
    options, others = parser.parse_known_args()
    options.others = others
    own = [f"--{name.replace('_', '-')}" for name in vars(options)]
    for word in options.others:  # or a misspelt --no-install would install
        if near := get_close_matches(word.partition("=")[0], own, n=1, cutoff=0.85):
            parser.error(f"there is no option {word}: did you mean {near[0]}?")
    return options


def run(options: argparse.Namespace, cleanup: ExitStack) -> None:
    for name in ("port", "status_port"):
        if (wanted := getattr(options, name)) is not None:
            choose_port(name, wanted)  # says now, not in a minute, that it is taken
    venv = options.venv.absolute()
    if not options.no_install:
        make_venv(venv)
        install_project(venv)
    elif not (venv / "bin" / "pooled-serve").exists():
        raise Problem(
            f"there is no pooled-serve in {shown(venv)}",
            "leave out --no-install, or name a virtual environment that has it with --venv",
        )
    url = choose_database(cleanup, may_install=not options.no_install)
    # In the environment and on no command line: those are for everyone to see in ps.
    os.environ["DATABASE_URL"] = url
    fill_shop(venv, options.products)
    # Now: meanwhile others may have taken what was free a minute ago.
    port = choose_port("port", options.port)
    status_port = choose_port("status_port", options.status_port, beside=port)
    server = start_server(venv, port, status_port, options, cleanup)
    say(what_to_try(venv, port, status_port, "their" if options.others else "10"))
    try:
        server.wait(options.seconds)
    except subprocess.TimeoutExpired:
        return
    raise server_ended(server)


def choose_port(option: str, wanted: int | None, *, beside: int | None = None) -> int:
    """Returns a port that is free: the wanted one, or the first after the one beside it."""
    first = FIRST_PORT if beside is None else beside + 1
    candidates = range(first, min(first + 100, 65536)) if wanted is None else [wanted]
    for port in candidates:
        if port == beside:
            continue
        with socket.socket() as probe:
            # As Gunicorn does: a port whose last connections linger is free to listen on.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
        return port
    flag = f"--{option.replace('_', '-')}"
    raise Problem(f"port {wanted or first} is taken", f"choose another one with {flag}")


# --- Python ---


def make_venv(venv: Path) -> None:
    if (venv / "bin" / "python").exists():
        return
    say(f"Making the virtual environment {shown(venv)} ...")
    command = [sys.executable, "-m", "venv", str(venv)]
    if succeeds(command):
        return
    # Debian keeps a part of the venv module in a package of its own.
    package = f"python3.{sys.version_info.minor}-venv"
    shutil.rmtree(venv, ignore_errors=True)
    if not (apt_install(package) and succeeds(command)):
        shutil.rmtree(venv, ignore_errors=True)
        raise Problem(
            f"{shlex.join(command)} failed", f"install {package}, or name a venv with --venv"
        )


def install_project(venv: Path) -> None:
    """Install the project, unless the venv has it as the present pyproject.toml describes it."""
    project = (ROOT / "pyproject.toml").read_text()
    stamp = venv / STAMP
    if stamp.exists() and stamp.read_text() == project:
        return
    say(f"Installing pooled-serve and what it needs into {shown(venv)} ...")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "-e", f"{ROOT}[metrics]"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        say(done.stdout, end="", file=sys.stderr)
        raise Problem("pip could not install pooled-serve", "its output above says why")
    stamp.write_text(project)


# --- Database ---


def choose_database(cleanup: ExitStack, *, may_install: bool) -> str:
    if url := os.environ.get("DATABASE_URL"):
        say("Using the database of $DATABASE_URL; the shop makes its tables there.")
        return url
    STATE.mkdir(mode=0o700, exist_ok=True)
    # my_print_defaults, without which mariadb-install-db does not run, is in the second package.
    packages = ("mariadb-server-core", "mariadb-client-core")
    if find_server() or (may_install and apt_install(*packages) and find_server()):
        return start_database(cleanup)
    say(
        "There is no MariaDB or MySQL server here, so the shop runs on SQLite: NOTHING IS POOLED.\n"
        f"→ install {' and '.join(packages)}, or set DATABASE_URL"
    )
    return f"sqlite:///{quote(str(STATE / 'shop.sqlite3'))}"


def start_database(cleanup: ExitStack) -> str:
    database = PrivateDatabase(STATE / "database")
    say(f"Starting {database.server}, private to this demo, on port {database.port} ...")
    try:
        cleanup.enter_context(database)
    except DatabaseError as error:
        raise Problem(
            str(error),
            f"stop the quickstart that may be running, remove {shown(STATE)}, or set DATABASE_URL",
        ) from error
    # For the reader's other terminal. It holds the password, so it is ours alone and goes with us.
    ENV_FILE.unlink(missing_ok=True)
    ENV_FILE.touch(mode=0o600)
    cleanup.callback(ENV_FILE.unlink, missing_ok=True)
    ENV_FILE.write_text(f"export DATABASE_URL={shlex.quote(database.url())}\n")
    return database.url()


def fill_shop(venv: Path, products: int) -> None:
    say("Filling the shop ...")
    manage = [str(venv / "bin" / "python"), str(SHOP / "manage.py")]
    done = subprocess.run(
        [*manage, "migrate", "--verbosity=0"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        # Not captured: on a terminal it shows how far it is.
        seed = [*manage, "seed", "--if-empty", f"--products={products}"]
        done = subprocess.run(seed, text=True, check=False)
    if done.returncode != 0:
        complaint = (done.stderr or "manage.py seed failed").strip().splitlines()[-1]
        raise Problem(complaint, "check that the server of DATABASE_URL is up and lets you in")


# --- The server ---


def start_server(
    venv: Path, port: int, status_port: int, options: argparse.Namespace, cleanup: ExitStack
) -> subprocess.Popen[bytes]:
    arguments = ["shop.wsgi", "--pool-size", "4"]
    cap = "--max-outstanding" if options.workers == 1 else "--max-per-host"
    if options.workers > 1:
        arguments += [f"-w{options.workers}"]
    if not any(each.partition("=")[0] == cap for each in options.others):
        arguments += [cap, "10"]
    arguments += ["-b", f"127.0.0.1:{port}", "--status", f"127.0.0.1:{status_port}"]
    arguments += options.others  # of two values the last counts
    say(f"In {shown(SHOP)}: pooled-serve {shlex.join(arguments)}")
    server = subprocess.Popen(
        tied_to_us([str(venv / "bin" / "pooled-serve"), *arguments]),
        cwd=SHOP,
        stdin=subprocess.DEVNULL,
        # Ctrl-C goes to everyone in the terminal's group; we stop things in their proper order.
        start_new_session=True,
    )
    cleanup.callback(stop_server, server)
    deadline = time.monotonic() + BOOT_TIMEOUT
    while not answers(port):
        if server.poll() is not None:
            raise server_ended(server)
        if time.monotonic() > deadline:
            raise Problem("pooled-serve does not answer", "its messages above may say why")
        time.sleep(0.1)
    return server


def server_ended(server: subprocess.Popen[bytes]) -> Problem:
    return Problem(
        f"pooled-serve ended with exit code {server.returncode}", "its messages above say why"
    )


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/bench/plaintext")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stop_server(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # with its workers: the session is theirs alone
        server.wait()


def what_to_try(venv: Path, port: int, status_port: int, number: str) -> str:
    python = shlex.quote(shown(venv / "bin" / "python"))
    load = f"{python} examples/shop/load.py http://127.0.0.1:{port} --mix --clients 40"
    lines = ["", f"The shop is open: http://127.0.0.1:{port}/"]
    lines += [f"Its connections:  http://127.0.0.1:{status_port}/"]
    if (database := urlsplit(os.environ["DATABASE_URL"])).hostname:
        lines += [f"Its database:     {database.hostname}:{database.port or 3306}"]
    lines += ["", "Forty visitors at once, from another terminal:"]
    lines += [f"    cd {shlex.quote(str(ROOT))}"]
    if os.environ["DATABASE_URL"].startswith("mysql:"):
        if ENV_FILE.exists():
            lines += [f"    . {shown(ENV_FILE)}"]
        lines += [f"    {load} --database"]
        lines += [
            "",
            f"They share {number} connections, as the second page shows. How many of them the",
        ]
        lines += ["database server sees:"]
        lines += [f"    {python} examples/shop/manage.py connections"]
    else:
        lines += [f"    {load}"]
    return "\n".join([*lines, "", "Ctrl-C stops everything.", ""])


# --- What it leaves behind ---


def leftovers(venv: Path) -> list[Path]:
    """The folders that it has made. A virtual environment of the reader's own is none."""
    made = {STATE: STATE, venv: venv / STAMP}
    return [folder for folder, sign in made.items() if sign.exists()]


def what_is_left(venv: Path) -> str:
    found = leftovers(venv)
    if not found:
        return "It leaves nothing behind."
    size = sum(map(size_of, found)) / 1e6
    again = "python3 examples/quickstart.py --clean"
    if venv != ROOT / ".venv" and venv in found:
        again += f" --venv {shlex.quote(shown(venv))}"
    where = " and ".join(map(shown, found))
    return f"{size:.0f} MB stay in {where} for the next time. To remove them:\n    {again}"


def size_of(folder: Path) -> int:
    """What it takes of the disk, in bytes: the server's files have holes."""
    files = (path.lstat() for path in folder.rglob("*"))
    return sum(status.st_blocks * 512 for status in files)


def clean(venv: Path) -> int:
    database = STATE / "database"
    if database.exists():
        with (database / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say(Problem("it is still running", "stop it with Ctrl-C first"), file=sys.stderr)
                return 1
    found = leftovers(venv)
    for path in found:
        size = size_of(path) / 1e6
        shutil.rmtree(path)
        say(f"Removed {shown(path)}, {size:.0f} MB.")
    if not found:
        say("There is nothing to remove.")
    return 0


# --- Odds and ends ---


def shown(path: Path) -> str:
    """As short as it can be said from the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def apt_install(*packages: str) -> bool:
    """Install Debian packages if this user may do so without being asked; say what."""
    apt = shutil.which("apt-get")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if apt is None or (sudo and not (shutil.which("sudo") and succeeds([*sudo, "true"]))):
        return False
    say(f"Installing {' and '.join(packages)} with apt-get (programs only, no service) ...")
    command = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", apt, "-o", "DPkg::Lock::Timeout=60"]
    install = [*command, "install", "--yes", "--no-install-recommends", *packages]
    STATE.mkdir(mode=0o700, exist_ok=True)
    log_file = STATE / "apt.log"
    with log_file.open("wb") as log:
        # In a session and with a log of its own, so that Ctrl-C does not stop it half way: that
        # would leave a package system in need of repair.
        quietly = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        run_apart = partial(subprocess.Popen, **quietly, start_new_session=True)
        # A fresh machine has no package lists yet, an old one outdated ones: then get them first.
        for step in (install, [*command, "update"], install):
            failed = run_apart(step).wait()
            if step is install and not failed:
                return True
    say(f"apt-get failed; {shown(log_file)} says why.")
    return False


if __name__ == "__main__":
    sys.exit(main())
