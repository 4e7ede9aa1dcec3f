"""An address that cannot be listened on: one line of problem, one of remedy, at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.errors import EXIT_PLAN
from pooled_serve.serve import addresses
from support.command import Done, run
from support.django_project import rewrite
from support.ports import free_port, is_listening
from support.processes import wait_until
from support.serve import POOLED_SERVE, Serve, ServerExited

HELLO = """
    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")
"""


@pytest.fixture
def site(project: MakeProject) -> Path:
    return project(HELLO, databases={})


@pytest.mark.parametrize("host", ["127.0..1", "a" * 64])
def test_a_host_that_no_name_can_be(site: Path, host: str) -> None:
    """Python refuses to look it up, with an error that is no OSError."""
    assert not addresses.is_loopback(host)
    assert not addresses.is_at(("127.0.0.1", 8001), (host, 8001))
    args = ("mysite.wsgi", "-b", "127.0.0.1:0", "--status", f"{host}:8001")
    done = run(*args, "--check", cwd=site)
    assert "Traceback" not in done.output, done.output
    run(*args, cwd=site).assert_one_problem("PS501", 1, f"{host}:8001 (--status) cannot be")


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def start(site: Path, *args: str, command: list[str] | None = None) -> Done:
    done = run("mysite.wsgi", *args, cwd=site, command=command or POOLED_SERVE)
    assert "onnection" not in done.output  # in use, failed, ...: gunicorn's five attempts
    return done


CASES = {
    "busy": (
        "127.0.0.1:{busy}",
        "is in use by process {pid} (",
        "stop that process",
    ),
    "all": ("0.0.0.0:{busy}", "is in use by process {pid} (", "stop that process"),
    "not ours": (
        "192.0.2.1:8000",
        "192.0.2.1 is no address of this machine",
        "use {flag} 0.0.0.0:8000",
    ),
    "unknown": ("no-host.invalid:8000", "the host is unknown", "correct the name"),
    "no folder": ("unix:{site}/none/s", "is in {site}/none, which is no directory", "create it"),
    "a file": ("unix:{site}/mysite/urls.py", "exists and is no socket", "remove that file"),
    "too long": ("unix:{site}/" + "x" * 120, "path too long", "{flag} unix:PATH"),
}


@pytest.mark.parametrize("flag", ["-b", "--status"])
@pytest.mark.parametrize("reuse_port", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_cannot_be_listened_on(
    site: Path, busy: int, case: str, flag: str, reuse_port: bool
) -> None:
    def fill(text: str) -> str:
        return text.format(busy=busy, site=site, pid=os.getpid(), flag=flag)

    address, says, remedy = map(fill, CASES[case])
    other = {"-b": [], "--status": ["-b", f"127.0.0.1:{free_port()}"]}[flag]
    done = start(site, flag, address, *other, *["--reuse-port"] * reuse_port, "--pid", "pid")
    done.assert_one_problem("PS501", 1, says, remedy)
    assert address.removeprefix("unix:") in done.output
    assert not (site / "pid").exists()
    if flag == "--status":
        assert "(--status)" in done.output


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("busy", "all")])
def test_a_check_warns_of_where_a_start_could_not_listen(site: Path, case: str) -> None:
    """It need not run where the server will, so it does not refuse."""
    address, says, remedy = (text.format(site=site, flag="-b") for text in CASES[case])
    done = start(site, "-b", address, "--check")
    done.assert_one_problem("WARN  PS501", 0, says, remedy)
    strict = start(site, "-b", address, "--check", "--strict")
    assert strict.code == EXIT_PLAN, strict.output
    page = start(site, "-b", "127.0.0.1:0", "--status", address, "--check")
    said = f"WARN PS501 {address.removeprefix('unix:')} (--status)"
    assert said in " ".join(page.output.split())


def test_each_of_several_is_told(site: Path, busy: int) -> None:
    free = f"127.0.0.1:{free_port()}"
    done = start(site, "-b", free, "-b", f"127.0.0.1:{busy}", "-b", "192.0.2.1:1", "-b", "unix:s")
    assert done.code == 1
    assert done.output.count("PS501") == done.output.count("→") == 2
    assert free not in done.output
    assert not (site / "s").exists()


def test_two_that_exclude_each_other(site: Path) -> None:
    port = free_port()
    done = start(site, "-b", f"127.0.0.1:{port}", "--status", f"0.0.0.0:{port}")
    done.assert_one_problem("PS501", 1, "(--status) is listened on by this server already", "leave")


def test_a_log_file_has_it_too(site: Path, busy: int) -> None:
    done = start(site, "-b", f"127.0.0.1:{busy}", "--error-logfile", "log")
    done.assert_one_problem("PS501", 1)
    assert (site / "log").read_text().count("PS501") == 1


def test_a_descriptor_that_nobody_has_passed_on(site: Path) -> None:
    done = start(site, "-b", "fd://99")
    done.assert_one_problem("PS501", 1, "fd://99 is no socket", "see what starts it")


def test_a_certificate_that_is_not_there(site: Path) -> None:
    done = start(site, "--certfile", "none.pem", "--keyfile", "none.key")
    done.assert_one_problem("PS401", 2, "--certfile: there is no file none.pem")


def test_without_the_right_to(site: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("needs root, to give up a right, setpriv and unshare")
    # Who keeps the right to read all, for Python's own files.
    drop = ["--bounding-set", "-net_bind_service,-dac_override", *POOLED_SERVE]
    command = ["/usr/bin/unshare", "--net", "/usr/bin/setpriv", *drop]
    done = start(site, "-b", "0.0.0.0:80", command=command)
    done.assert_one_problem("PS501", 1, "user 0 may not use port 80", "CAP_NET_BIND_SERVICE")
    private = site / "private"
    private.mkdir()
    os.chown(private, 65534, 65534)
    done = start(site, "-b", f"unix:{private}/s", command=command)
    done.assert_one_problem("PS501", 1, "Permission denied", f"let user 0 write to {private}")


# --- HUP ---------------------------------------------------------------------------------------


class Bound:
    """A server whose addresses are in its configuration file."""

    def __init__(self, site: Path, serve: StartServe, *addresses: str, more: str = "") -> None:
        self.conf = site / "gunicorn.conf.py"
        self.more = more
        self.conf.write_text(self._source(addresses))
        host, port = addresses[0].split(":")
        self.server: Serve = serve(site, address=(host, int(port)), bind=False)

    def _source(self, addresses: tuple[str, ...]) -> str:
        return f"bind = {list(addresses)!r}\n{self.more}"

    def hang_up(self, *addresses: str) -> None:
        """Until new workers serve."""
        before = self.server.worker_pids()
        rewrite(self.conf, self._source(addresses))
        self.server.signal(signal.SIGHUP)
        wait_until(lambda: (new := self.server.worker_pids()) and not before & new)

    def serves(self) -> bool:
        return self.server.get("/hello").status == 200


def here() -> str:
    return f"127.0.0.1:{free_port()}"


def test_hup_with_an_address_that_is_in_use_changes_nothing(
    site: Path, serve: StartServe, busy: int
) -> None:
    bound = Bound(site, serve, here())
    for bad in (f"127.0.0.1:{busy}", "192.0.2.1:8000", f"unix:{site}/none/s"):
        bound.hang_up(bad)
        assert bound.serves()
        said = bound.server.log.rpartition("Not reloaded, the old options stay (")[2]
        assert said.startswith("the workers are replaced, and load the project anew): PS501 ")
        said = said.partition("PS501 ")[2]
        assert said.startswith(bad.removeprefix("unix:"))
        assert "→" in said


@pytest.mark.parametrize("more", ["", "reuse_port = True\n"])
def test_hup_with_one_more_address_changes_none(site: Path, serve: StartServe, more: str) -> None:
    first, second = here(), here()
    bound = Bound(site, serve, first, more=more)
    bound.hang_up(first, second)
    assert "--bind stays as it was: " in bound.server.log
    # With reuse_port the new worker makes its own, and nobody listens before.
    wait_until(lambda: is_listening(bound.server.port))
    assert all(bound.serves() for _ in range(20))  # no listener that nobody serves


def test_hup_with_reuse_port_does_not_end_it(site: Path, serve: StartServe) -> None:
    bound = Bound(site, serve, address := here())
    bound.more = "reuse_port = True\n"
    bound.hang_up(address)
    assert "--reuse-port stays as it was: " in bound.server.log
    assert bound.serves()


def test_hup_moves_it(site: Path, serve: StartServe) -> None:
    first, second = here(), here()
    bound = Bound(site, serve, first)
    bound.hang_up(second)
    bound.server.address = ("127.0.0.1", int(second.partition(":")[2]))
    assert bound.serves()


def test_hup_with_a_certificate_that_is_not_there(site: Path, serve: StartServe) -> None:
    bound = Bound(site, serve, address := here())
    bound.more = "certfile = 'none.pem'\n"
    bound.hang_up(address)
    assert "Not reloaded" in bound.server.log
    assert bound.serves()


def test_a_failed_start_is_no_server(site: Path, busy: int, serve: StartServe) -> None:
    with pytest.raises(ServerExited) as ended:
        serve(site, address=("127.0.0.1", busy))
    assert ended.value.returncode == 1


def test_addresses_are_shown_as_gunicorn_shows_them() -> None:
    assert addresses.url(("127.0.0.1", 8000), "https") == "https://127.0.0.1:8000"
    assert addresses.url(("::1", 8000), "http") == "http://[::1]:8000"
    assert addresses.url("/run/web.sock", "http") == "unix:/run/web.sock"
    assert addresses.url(3, "http") == "fd://3"
