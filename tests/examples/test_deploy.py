"""The recipes in examples/deploy do what they say, as far as that can be run without Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from gunicorn.config import GracefulTimeout, Keepalive

import pooled_serve
from conftest import MakeProject, StartServe
from pooled_serve.options import OPTIONS
from support import command, debian
from support.ports import free_port
from support.processes import MAX_WAIT_SECONDS, wait_until
from support.serve import Client, Serve, environment
from support.servers import EXAMPLES, ROOT, Database, Server, tied_to_us
from support.text import find
from support.torture import torture

DEPLOY = EXAMPLES / "deploy"
BIN = Path(sys.executable).parent
README = (DEPLOY / "README.md").read_text()

GRACEFUL = GracefulTimeout.default
POOL_TIMEOUT = float(str(next(o.default for o in OPTIONS if o.flag == "--pool-timeout")))

SETTINGS = next(s for s in re.findall(r"```python\n(.*?)```", README, re.S) if "DATABASES" in s)

VIEW = """
    import os
    import pathlib
    import signal

    import gevent
    from django.db import connection
    from django.http import HttpResponse, JsonResponse

    def query(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return HttpResponse("ok")

    def about(request):
        ident = gevent.getcurrent().minimal_ident  # a new one for each connection
        names = ("HTTP_HOST", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "wsgi.url_scheme")
        return JsonResponse({"client": ident} | {n: request.environ.get(n) for n in names})

    def hold(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            gevent.sleep(float(request.GET["seconds"]))
        return HttpResponse()

    def hold_until_released(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            pathlib.Path("held").touch()
            while not pathlib.Path("release").exists():
                gevent.sleep(0.02)
        return HttpResponse()

    def die(request):
        with pathlib.Path("deaths").open("a") as deaths:
            deaths.write(request.method + "\\n")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def text(name: str) -> str:
    return (DEPLOY / name).read_text()


def seconds(duration: str) -> float:
    number, unit = find(r"^(\d+)(m?s?)$", duration).groups()
    return int(number) * {"": 1, "s": 1, "m": 60}[unit]


def installed(name: str, package: str) -> str:
    try:
        return str(debian.program(name, package))
    except debian.ProgramMissing as missing:
        pytest.skip(str(missing))


def variables(database: Database, folder: Path) -> dict[str, str]:
    """What the settings in README.md want to know, with the password in a file."""
    secret = folder / "database_password.txt"
    secret.write_text(database.password + "\n")
    return {
        "DATABASE_HOST": database.host,
        "DATABASE_PORT": str(database.port),
        "DATABASE_NAME": database.name,
        "DATABASE_USER": database.user,
        "DATABASE_PASSWORD_FILE": str(secret),
        "SECRET_KEY": "for tests",
        "ALLOWED_HOSTS": "127.0.0.1,localhost,www.example.com",
    }


@pytest.fixture
def myproject(project: MakeProject) -> Path:
    """A project with the settings of README.md."""
    head = "from pathlib import Path\nBASE_DIR = Path(__file__).parent\n"
    return project(VIEW, databases={}, settings=f"{head}{SETTINGS}\nALLOWED_HOSTS.append('')\n")


@pytest.fixture
def env(mariadb: Server, tmp_path: Path) -> dict[str, str]:
    return variables(mariadb.create_database(), tmp_path)


# --- Dockerfile --------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, with continued lines in one."""
    lines = [line for line in text("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = [line.partition(" ") for line in joined.splitlines() if line]
    return [(name, rest.lstrip()) for name, _, rest in split]


def the_instruction(name: str) -> str:
    (found,) = (rest for instruction, rest in instructions() if instruction == name)
    return found


def image_command() -> list[str]:
    command: list[str] = json.loads(the_instruction("CMD"))
    return command


def image_variables() -> dict[str, str]:
    """All that ENV sets."""
    set_ = [rest for instruction, rest in instructions() if instruction == "ENV"]
    return dict(pair.split("=", 1) for rest in set_ for pair in shlex.split(rest))


def health_check() -> list[str]:
    command: list[str] = json.loads(the_instruction("HEALTHCHECK").partition(" CMD ")[2])
    return command


class Container:
    """CMD of the Dockerfile as it would run there: user 10001, nothing but /dev/shm writable."""

    def __init__(
        self, folder: Path, app: str, env: Mapping[str, str], programs: Path = BIN
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("a read-only file system takes root")
        self.ports = {"8000": free_port(), "9100": free_port()}
        names = image_variables()
        self.env = {
            **dict(zip(names, self._here(names.values()), strict=True)),
            **env,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": None,
        }
        program, _, *args = self._here(image_command())
        user, group = the_instruction("USER").split(":")
        script = f"""
            mount --make-rprivate / && mount -o remount,bind,ro / || exit 90
            mountpoint -q /tmp && {{ mount -o remount,bind,ro /tmp || exit 91; }}
            touch /tmp/x "$PWD/x" 2>/dev/null && exit 92
            exec unshare --user --map-user={user} --map-group={group} {programs}/{program} "$@"
        """
        self.server = Serve(
            app,
            *args,
            cwd=folder,
            env=self.env,
            command=["/usr/bin/unshare", "--mount", "sh", "-c", dedent(script), "sh"],
            address=("127.0.0.1", self.ports["8000"]),
            bind=False,
        )

    def __enter__(self) -> Container:
        self.server.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.server.__exit__(*exc_info)

    def answers(self, path: str) -> bool:
        return self.status(path) == 200

    def status(self, path: str) -> int:
        with Client(("127.0.0.1", self.ports["9100"])) as client:
            return client.get(path).status

    def is_healthy(self) -> bool:
        done = subprocess.run(
            self._here(health_check()), env=environment(self.env), timeout=120, check=False
        )
        return done.returncode == 0

    def _here(self, arguments: Iterable[str]) -> list[str]:
        replaced = list(arguments)
        for port, ours in self.ports.items():
            replaced = [re.sub(rf"\b{port}\b", str(ours), argument) for argument in replaced]
        return replaced


def test_the_image_serves_read_only_and_not_as_root(myproject: Path, env: dict[str, str]) -> None:
    app = image_command()[1].replace("myproject", "mysite")
    with Container(myproject, app, env) as container:
        assert container.server.get("/query").text == "ok"
        uid_map = Path(f"/proc/{container.server.master_pid}/uid_map").read_text()
        assert uid_map.split() == [the_instruction("USER").partition(":")[0], "0", "1"]
        wait_until(container.is_healthy)
        for probe in kubernetes_probes().values():
            assert probe["httpGet"]["port"] == "status"
            wait_until(partial(container.answers, probe["httpGet"]["path"]))
        container.server.stop()
        assert not container.is_healthy()


def test_requirements_are_exact() -> None:
    lines = [line for line in text("requirements.txt").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in lines)
    assert f"pooled-serve=={pooled_serve.__version__}" in lines


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="the image has a newer Python, and Django with it"
)
@torture
def test_each_step_of_the_build(mariadb: Server, tmp_path: Path) -> None:
    database = mariadb.create_database()
    env = variables(database, tmp_path)
    address = f"{database.host}:{database.port}"
    env["DATABASE_URL"] = f"mysql://{database.user}:{database.password}@{address}/{database.name}"
    context, image, wheels = (tmp_path / name for name in ("context", "image", "wheels"))
    ignored = shutil.ignore_patterns("__pycache__", "*.sqlite3*")
    shutil.copytree(EXAMPLES / "shop", context, ignore=ignored)
    shutil.copy(DEPLOY / "requirements.txt", context)
    with (context / "shop" / "settings.py").open("a") as settings:
        settings.write('\nSTATIC_ROOT = BASE_DIR / "static"\n')
    python = tmp_path / "python"  # in the place of the base image
    subprocess.run([sys.executable, "-m", "venv", python], check=True)
    # in the place of the index, where this version is not yet
    pip = [str(python / "bin" / "pip"), "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)], check=True)
    image.mkdir()
    variable = image_variables()
    variable |= {"PATH": f"{python / 'bin'}:{os.environ['PATH']}", "PIP_FIND_LINKS": str(wheels)}

    steps = iter(instructions())
    assert next(steps)[0] == "FROM"
    for instruction, rest in steps:
        if instruction == "COPY":
            for source in rest.split()[:-1]:
                if source == ".":
                    shutil.copytree(context, image, dirs_exist_ok=True)
                else:
                    shutil.copy(context / source, image)
        elif instruction == "RUN" and rest.startswith("useradd"):
            if os.geteuid() == 0:
                (tmp_path / "etc").mkdir()
                for name in ("passwd", "group", "login.defs", "shadow", "gshadow"):
                    shutil.copy(f"/etc/{name}", tmp_path / "etc")
                run = rest.replace("useradd", f"/usr/sbin/useradd --prefix {tmp_path}")
                subprocess.run(shlex.split(run), check=True)
                uid = the_instruction("USER").split(":")[0]
                assert f"app:x:{uid}:{uid}:" in (tmp_path / "etc" / "passwd").read_text()
        elif instruction == "RUN":
            done = subprocess.run(
                ["sh", "-c", rest],
                cwd=image,
                env=environment({**variable, "PYTHONPATH": None}),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            assert instruction in {"ENV", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "CMD"}

    assert (image / "static" / "admin" / "css" / "base.css").is_file()
    assert list(image.glob("shop/__pycache__/settings.*.pyc"))
    migrate = compose()["services"]["migrate"]["command"]
    subprocess.run(
        migrate, cwd=image, env=environment(env | variable | {"PYTHONPATH": None}), check=True
    )
    with Container(image, "shop.wsgi", env, python / "bin") as container:
        assert container.server.get("/").status == 200
        wait_until(container.is_healthy)


# --- Compose and Kubernetes --------------------------------------------------------------------


def compose() -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load(text("compose.yaml"))
    return composed


def kubernetes() -> dict[str, Any]:
    return {thing["kind"]: thing for thing in yaml.safe_load_all(text("kubernetes.yaml"))}


def the_pod() -> dict[str, Any]:
    pod: dict[str, Any] = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    return pod


def kubernetes_probes() -> dict[str, Any]:
    (container,) = the_pod()["containers"]
    return {name: probe for name, probe in container.items() if name.endswith("Probe")}


def plan(folder: Path, env: Mapping[str, str]) -> str:
    done = command.run("mysite.wsgi", "--check", cwd=folder, env=env)
    assert done.code == 0, done.output
    assert "warn" not in done.output
    return done.output


def test_the_sums_in_the_comments_are_those_of_the_plan(
    myproject: Path, env: dict[str, str]
) -> None:
    web = compose()["services"]["web"]["environment"]
    numbers = {k: v for k, v in web.items() if k.startswith(("POOLED_SERVE_", "WEB_"))}
    assert re.search(r"2 × 20 = 40 +151", plan(myproject, {**env, **numbers}))
    assert "2 workers x 20 connections = 40 " in text("compose.yaml")

    (container,) = the_pod()["containers"]
    numbers = {
        pair["name"]: pair["value"]
        for pair in container["env"]
        if pair["name"].startswith(("POOLED_SERVE_", "WEB_"))
    }
    assert re.search(r"6 × 2 × 10 = 120 +151", plan(myproject, {**env, **numbers}))
    assert "2 x 3 pods x 2 workers x 10 connections = 120" in text("kubernetes.yaml")
    deployment = kubernetes()["Deployment"]["spec"]
    assert 2 * deployment["replicas"] == int(numbers["POOLED_SERVE_REPLICAS"])


def test_whoever_stops_it_waits_for_longer_than_it_takes() -> None:
    assert seconds(compose()["services"]["web"]["stop_grace_period"]) > GRACEFUL
    (container,) = the_pod()["containers"]
    (_, sleep) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert the_pod()["terminationGracePeriodSeconds"] >= int(sleep) + GRACEFUL + 5
    assert seconds(unit("Service")["TimeoutStopSec"][0]) > GRACEFUL


def test_containers_need_what_the_image_has() -> None:
    user, _ = the_instruction("USER").split(":")
    assert the_pod()["securityContext"]["runAsUser"] == int(user)
    (container,) = the_pod()["containers"]
    exposed = {int(port) for port in the_instruction("EXPOSE").split()}
    assert {port["containerPort"] for port in container["ports"]} == exposed
    published = {p.split(":")[-1] for p in compose()["services"]["web"]["ports"]}
    assert {int(port) for port in published} == exposed
    known = {pair["name"] for pair in container["env"]} | set(
        compose()["services"]["web"]["environment"]
    )
    ours = {o.variable for o in OPTIONS} | {"WEB_CONCURRENCY"}
    theirs = set(re.findall(r'"([A-Z_]+)"', SETTINGS))
    assert known <= ours | theirs


def test_the_health_check_of_the_database(mariadb: Server) -> None:
    _, program, *args = compose()["services"]["db"]["healthcheck"]["test"]
    here = installed(program, "mariadb-client")

    def healthy(port: int) -> bool:
        done = subprocess.run([here, *args, "-P", str(port)], capture_output=True, check=False)
        return done.returncode == 0

    assert healthy(mariadb.port)
    assert not healthy(free_port())


# --- systemd -----------------------------------------------------------------------------------


def unit(section: str, name: str = "pooled-serve.service") -> dict[str, list[str]]:
    (body,) = re.findall(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", text(name), re.M | re.S)
    settings: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", body).splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def test_systemd_has_no_complaint(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    for name in ("pooled-serve.service", "pooled-serve.socket"):
        (tmp_path / name).write_text(text(name).replace("/srv/venv/bin/", f"{BIN}/"))
    units = [str(tmp_path / "pooled-serve.socket"), str(tmp_path / "pooled-serve.service")]
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, check=False)
    # other units of this machine may give cause for complaint
    assert "pooled-serve" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    exposed = ["security", "--offline=true", "--threshold=20", units[1]]
    done = subprocess.run([analyze, *exposed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class Activated:
    """pooled-serve.service with the sockets of pooled-serve.socket, which are bound already."""

    def __init__(self, folder: Path, env: Mapping[str, str], scratch: Path) -> None:
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            pytest.skip("there is no systemd-socket-activate here")
        self.env = dict(env)
        self.status = ("127.0.0.1", free_port())
        self._there = {
            "/run/pooled-serve.sock": str(scratch / "http.sock"),
            "127.0.0.1:9100": f"127.0.0.1:{self.status[1]}",
            "/srv/venv/bin/": f"{BIN}/",
            "myproject": "mysite",
            "-w 3": "-w 1",
        }
        sockets = unit("Socket", "pooled-serve.socket")["ListenStream"]
        listen = [option for address in sockets for option in ("-l", self.here(address))]
        started = unit("Service")["ExecStart"][0]
        program, app, *args = shlex.split(self.here(started))
        self.server = Serve(
            app,
            *args,
            cwd=folder,
            env=env,
            command=[activate, *listen, *(f"-E{name}" for name in environment(env)), program],
            address=self.here("/run/pooled-serve.sock"),
            bind=False,
        )

    def here(self, line: str) -> str:
        for name, ours in self._there.items():
            line = line.replace(name, ours)
        return line

    def workers(self) -> set[int]:
        """Those that have loaded the project."""
        with Client(self.status) as client:
            return {worker["pid"] for worker in client.get("/stats.json").json()["workers"]}

    def reload(self) -> bool:
        """What systemctl reload does."""
        return self.run("ExecReload", {"$MAINPID": str(self.server.master_pid)})

    def run(self, setting: str, variables: Mapping[str, str]) -> bool:
        """As systemd does it: one command after the other, as long as they succeed."""
        for line in unit("Service")[setting]:
            line = self.here(line)
            for name, value in variables.items():
                line = line.replace(name, value)
            done = subprocess.run(
                shlex.split(line),
                cwd=self.server._cwd,
                env=environment(self.env),
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                return False
        return True


def test_the_unit_on_sockets_of_systemd(
    myproject: Path, env: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(MAX_WAIT_SECONDS)
        activated = Activated(
            myproject, {**env, "NOTIFY_SOCKET": str(tmp_path / "notify")}, tmp_path
        )
        with activated.server as server:
            assert b"READY=1" in notified.recv(1000)
            assert server.get("/query").text == "ok"
            before = wait_until(activated.workers)
            dash = {"-" + str(BIN): str(BIN)}
            assert activated.run("ExecStartPre", dash)
            settings = myproject / "mysite" / "settings.py"
            settings.write_text(settings.read_text() + "import nothing_of_that_name\n")
            assert not activated.run("ExecStartPre", dash)
            assert not activated.reload()
            assert server.worker_pids() == before

            settings.write_text(settings.read_text().replace("import nothing_of_that_name\n", ""))
            with (myproject / "mysite" / "views.py").open("a") as views:
                views.write("def new(request):\n    return HttpResponse('new')\n")
            assert activated.reload()
            wait_until(lambda: not server.worker_pids() & before)
            assert server.get("/new").text == "new"
            server.stop()
        # they are systemd's, who has them open for the next one
        assert Path(str(server.address)).is_socket()


def test_the_unit_names_the_addresses_of_its_sockets() -> None:
    started = unit("Service")["ExecStart"][0]
    for address in unit("Socket", "pooled-serve.socket")["ListenStream"]:
        assert address in started
    # what it refuses to try again is what a person must correct
    assert unit("Service")["RestartPreventExitStatus"] == ["2 4 5"]
    codes = (ROOT / "README.md").read_text()
    for code in (2, 4, 5):
        assert f"| {code} | the " in codes


# --- nginx -------------------------------------------------------------------------------------


def nginx_seconds(name: str) -> list[float]:
    return [seconds(value) for value in re.findall(rf"^\s*{name} (\w+);", text("nginx.conf"), re.M)]


def test_nginx_waits_for_longer_than_pooled_serve() -> None:
    assert min(nginx_seconds("proxy_read_timeout")) > POOL_TIMEOUT
    (idle,) = nginx_seconds("keepalive_timeout")
    started = shlex.split(unit("Service")["ExecStart"][0])
    assert idle < int(started[started.index("--keep-alive") + 1])
    assert idle > Keepalive.default  # or the option would not be needed


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[Path], int]]:
    """nginx.conf at work, with a socket of ours behind it. Returns its port."""
    program = installed("nginx", "nginx")
    with ExitStack() as stack:

        def start(sock: Path) -> int:
            port = free_port()
            (tmp_path / "static").mkdir()
            (tmp_path / "static" / "a.txt").write_text("static")
            site = text("nginx.conf")
            for theirs, ours in {
                "unix:/run/pooled-serve.sock": f"unix:{sock}",
                "listen 80;": f"listen 127.0.0.1:{port};",
                "/srv/myproject/static/": f"{tmp_path}/static/",
            }.items():
                assert theirs in site
                site = site.replace(theirs, ours)
            temporary = "".join(
                f"{name}_temp_path {tmp_path}/{name};\n"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            (tmp_path / "nginx.conf").write_text(
                f"daemon off; worker_processes 1; pid {tmp_path}/nginx.pid;\n"
                f"{'user root;' if os.geteuid() == 0 else ''}\n"
                f"error_log {tmp_path}/error.log info; events {{}}\n"
                f"http {{ access_log off;\n{temporary}{site}}}\n"
            )
            options = ["-p", str(tmp_path), "-c", "nginx.conf", "-e", str(tmp_path / "error.log")]
            process = stack.enter_context(subprocess.Popen(tied_to_us([program, *options])))
            stack.callback(process.terminate)

            def answers() -> bool:
                assert process.poll() is None, (tmp_path / "error.log").read_text()
                try:
                    with Client(("127.0.0.1", port)) as client:
                        return client.get("/static/a.txt").text == "static"
                except OSError:
                    return False

            wait_until(answers)
            return port

        yield start


Behind = Callable[..., tuple[Serve, int]]


@pytest.fixture
def behind_nginx(
    myproject: Path,
    env: dict[str, str],
    serve: StartServe,
    nginx: Callable[[Path], int],
    tmp_path: Path,
) -> Behind:
    def start(*args: str) -> tuple[Serve, int]:
        sock = tmp_path / "http.sock"
        server = serve(myproject, *args, env=env, address=str(sock))
        return server, nginx(sock)

    return start


def test_nginx_says_who_asks_and_keeps_connections_open(behind_nginx: Behind) -> None:
    _, port = behind_nginx("--keep-alive", "6")
    told = []
    for _ in range(5):
        with Client(("127.0.0.1", port)) as client:
            lie = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
            told.append(client.get("/about", {**lie, "Host": "www.example.com"}).json())
    assert len({answer.pop("client") for answer in told}) == 1
    assert told[0] == {
        "HTTP_HOST": "www.example.com",
        "HTTP_X_FORWARDED_FOR": "127.0.0.1",
        "HTTP_X_FORWARDED_PROTO": "http",
        "wsgi.url_scheme": "http",
    }


def test_nginx_passes_the_503_of_a_full_pool_on_and_asks_once(
    behind_nginx: Behind, myproject: Path
) -> None:
    options = ("--pool-size", "1", "--max-outstanding", "1", "--pool-timeout", "0.3")
    server, port = behind_nginx(*options, "--access-logfile", "-")
    # The limit is for waiting, not for a connect on a busy machine.
    wait_until(lambda: server.get("/query").status == 200)
    held, release = myproject / "held", myproject / "release"
    holder = threading.Thread(target=server.get, args=["/hold_until_released"])
    holder.start()
    try:
        wait_until(held.exists)
        with Client(("127.0.0.1", port)) as client:
            answer = client.get("/query?through=nginx")
            assert client.get("/about").status == 200
    finally:
        release.touch()
        holder.join()
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert server.wait_for_log("GET /about ").count("GET /query?through=nginx ") == 1


def test_nginx_repeats_no_post(behind_nginx: Behind, myproject: Path) -> None:
    _, port = behind_nginx("--keep-alive", "6")
    with Client(("127.0.0.1", port)) as client:
        for method in ("POST", "GET"):
            assert client.get("/query").status == 200  # on a connection that is kept for the next
            assert client.request(method, "/die").status == 502
    assert (myproject / "deaths").read_text().split() == ["POST", "GET", "GET"]


def test_nginx_does_not_notice_a_reload(behind_nginx: Behind) -> None:
    server, port = behind_nginx("--keep-alive", "6")
    before, statuses, over = server.worker_pids(), [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            with Client(("127.0.0.1", port)) as client:
                statuses.append(client.get("/query").status)

    visitors = [threading.Thread(target=ask) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    try:
        wait_until(lambda: len(statuses) > 20)
        server.signal(signal.SIGHUP)
        wait_until(lambda: not server.worker_pids() & before)
        so_far = len(statuses)
        wait_until(lambda: len(statuses) > so_far + 20)
    finally:
        over.set()
        for visitor in visitors:
            visitor.join()
    assert set(statuses) == {200}


# --- Prometheus and Grafana --------------------------------------------------------------------

LABELS = {"db_client_connection_pool_name", "db_client_connection_state", "worker"}
NAME = "db_client_connection_"
METRICS = {
    *(NAME + n for n in ("count", "max", "idle_max", "pending_requests", "timeouts_total")),
    *(
        f"{NAME}{what}_time_seconds_{part}"
        for what in ("create", "wait", "use")
        for part in ("bucket", "sum", "count")
    ),
}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(text("grafana-dashboard.json"))
    return board


def queries(**variables: str) -> list[str]:
    """Of the dashboard, with its variables filled in."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    filled = {"job": ".*", "instance": ".*", "pool": ".*", "__rate_interval": "5m", **variables}
    for name, value in filled.items():
        found = [expression.replace(f"${name}", value) for expression in found]
    assert not any("$" in expression for expression in found)
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(text("prometheus-rules.yaml"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_rules_and_dashboard_name_metrics_that_there_are() -> None:
    dashboard_names = set(re.findall(rf"\b{NAME}\w+", "\n".join(queries())))
    rule_names = set(re.findall(rf"\b{NAME}\w+", "\n".join(rule["expr"] for rule in rules())))
    assert dashboard_names | rule_names <= METRICS | LABELS
    for kind in ("create", "wait", "use"):
        assert f"{NAME}{kind}_time_seconds_bucket" in dashboard_names
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def promtool(*args: str) -> None:
    program = installed("promtool", "prometheus")
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_is_content(tmp_path: Path) -> None:
    promtool("test", "rules", str(DEPLOY / "prometheus-rules.test.yaml"))
    records = [
        {"record": f"query:{number}", "expr": expression}
        for number, expression in enumerate(queries())
    ]
    group = {"groups": [{"name": "dashboard", "rules": records}]}
    (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump(group))
    promtool(
        "check", "rules", *map(str, (DEPLOY / "prometheus-rules.yaml", tmp_path / "dashboard.yaml"))
    )


@torture
def test_prometheus_answers_every_query_of_the_dashboard(
    myproject: Path, env: dict[str, str], serve: StartServe, tmp_path: Path
) -> None:
    program = installed("prometheus", "prometheus")
    status, port = free_port(), free_port()
    options = ("--pool-size", "1", "--max-outstanding", "2", "--pool-timeout", "0.2")
    server = serve(myproject, *options, "--status", f"127.0.0.1:{status}", env=env)
    scrape = {"job_name": "web", "static_configs": [{"targets": [f"127.0.0.1:{status}"]}]}
    (tmp_path / "prometheus.yaml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    command = [
        program,
        f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]

    def answer(query: str) -> list[Any]:
        with Client(("127.0.0.1", port)) as client:
            response = client.get("/api/v1/query?" + urlencode({"query": query}))
        if response.status == 503:  # it is still starting
            return []
        said = response.json()
        assert said["status"] == "success", said
        return [series["value"][1] for series in said["data"]["result"]]

    def is_scraped() -> bool:
        try:
            return bool(answer("sum(increase(db_client_connection_timeouts_total[10s])) > 0"))
        except OSError:
            return False

    over = threading.Event()

    def visit() -> None:
        # Each time one connection is opened, two are waited for in vain, and one is closed.
        while not over.is_set():
            with ThreadPoolExecutor(4) as visitors:
                list(visitors.map(server.get, ["/hold?seconds=0.3"] * 4))

    with subprocess.Popen(tied_to_us(command)) as process, ThreadPoolExecutor(1) as thread:
        visiting = thread.submit(visit)
        try:
            wait_until(is_scraped, timeout=120)
            for query in queries(__rate_interval="10s"):
                # Of the last ten seconds there may be too few numbers yet.
                wait_until(lambda: (values := answer(query)) and "NaN" not in values)  # noqa: B023
        finally:
            over.set()
            process.terminate()
        visiting.result()
