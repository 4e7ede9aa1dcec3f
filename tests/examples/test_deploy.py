"""The recipes in examples/deploy do what they say, as far as that can be run without Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

import pooled_serve
from pooled_serve.options import OPTIONS
from support import command
from support.deploy import (
    BIN,
    DEPLOY,
    GRACEFUL,
    SETTINGS,
    installed,
    seconds,
    text,
    unit,
    variables,
)
from support.ports import free_port
from support.processes import MAX_WAIT_SECONDS, wait_until
from support.serve import Client, Serve, environment
from support.servers import EXAMPLES, ROOT, Server
from support.torture import torture

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
        self.ports = {"8000": free_port(), "8001": free_port()}
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
        with Client(("127.0.0.1", self.ports["8001"])) as client:
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
    context, image = tmp_path / "context", tmp_path / "image"
    ignored = shutil.ignore_patterns("__pycache__", "*.sqlite3*")
    shutil.copytree(EXAMPLES / "shop", context, ignore=ignored)
    shutil.copy(DEPLOY / "requirements.txt", context)
    manage = (context / "manage.py").read_text()
    (context / "manage.py").write_text(
        re.sub(r".*pymysql.*\n", "", manage)
    )  # as most projects have it
    with (context / "shop" / "settings.py").open("a") as settings:
        settings.write('\nSTATIC_ROOT = BASE_DIR / "static"\n')
    python = tmp_path / "python"  # in the place of the base image
    subprocess.run([sys.executable, "-m", "venv", python], check=True)
    (wheel,) = re.findall(r"^# +(pip wheel .*) PATH/TO/THE/CHECKOUT$", text("Dockerfile"), re.M)
    image.mkdir()
    variable = image_variables()
    variable |= {"PATH": f"{python / 'bin'}:{os.environ['PATH']}"}
    wheel_env = environment({**variable, "PYTHONPATH": None})
    subprocess.run([*shlex.split(wheel), str(ROOT)], cwd=context, env=wheel_env, check=True)

    steps = iter(instructions())
    assert next(steps)[0] == "FROM"
    for instruction, rest in steps:
        if instruction == "COPY":
            *sources, to = rest.split()
            for source in sources:
                if source == ".":
                    shutil.copytree(context, image / to, dirs_exist_ok=True)
                    continue
                (image / to).mkdir(exist_ok=True)
                for found in context.glob(source):
                    shutil.copy(found, image / to)
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
    assert re.search(r" 40 per host +151", plan(myproject, {**env, **numbers}))
    assert "together have 40 connections at most; MySQL allows 151" in text("compose.yaml")

    (container,) = the_pod()["containers"]
    numbers = {
        pair["name"]: pair["value"]
        for pair in container["env"]
        if pair["name"].startswith(("POOLED_SERVE_", "WEB_"))
    }
    assert re.search(r"6 × 20 per host = 120 +151", plan(myproject, {**env, **numbers}))
    assert "2 x 3 pods x 20 connections = 120" in text("kubernetes.yaml")
    deployment = kubernetes()["Deployment"]["spec"]
    assert 2 * deployment["replicas"] == int(numbers["POOLED_SERVE_REPLICAS"])


def test_whoever_stops_it_waits_for_longer_than_it_takes() -> None:
    assert seconds(compose()["services"]["web"]["stop_grace_period"]) > GRACEFUL
    (container,) = the_pod()["containers"]
    (_, sleep) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert the_pod()["terminationGracePeriodSeconds"] >= int(sleep) + GRACEFUL + 5
    assert seconds(unit("Service")["TimeoutStopSec"][0]) > 2 * GRACEFUL, "there may be a reload"


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
        numbers = dict(line.split("=", 1) for line in unit("Service")["Environment"])
        self.env = {**numbers, **env, "WEB_CONCURRENCY": "1"}
        self.status = ("127.0.0.1", free_port())
        self._there = {
            "/run/pooled-serve.sock": str(scratch / "http.sock"),
            "127.0.0.1:8001": f"127.0.0.1:{self.status[1]}",
            "/srv/venv/bin/": f"{BIN}/",
            "myproject": "mysite",
        }
        sockets = unit("Socket", "pooled-serve.socket")["ListenStream"]
        listen = [option for address in sockets for option in ("-l", self.here(address))]
        started = unit("Service")["ExecStart"][0]
        program, app, *args = shlex.split(self.here(started))
        self.server = Serve(
            app,
            *args,
            cwd=folder,
            env=self.env,
            command=[activate, *listen, *(f"-E{name}" for name in environment(self.env)), program],
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
                cwd=self.server.cwd,
                env=environment(self.env),
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                return False
        return True


@torture
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


def test_the_unit_has_each_number_once() -> None:
    settings = unit("Service")
    known = {option.variable for option in OPTIONS} | {"WEB_CONCURRENCY"}
    assert {line.partition("=")[0] for line in settings["Environment"]} <= known
    for name in ("ExecStartPre", "ExecStart", "ExecReload"):
        assert not re.search(r" -w\b| --(workers|pool-size)\b", " ".join(settings[name]))


def test_the_unit_names_the_addresses_of_its_sockets() -> None:
    started = unit("Service")["ExecStart"][0]
    for address in unit("Socket", "pooled-serve.socket")["ListenStream"]:
        assert address in started
        # Prometheus leaves the ports from 9090 on to its own servers and exporters
        assert not re.search(r":9\d{3}$", address)
    # what it refuses to try again is what a person must correct
    assert unit("Service")["RestartPreventExitStatus"] == ["2 4 5"]
    codes = (ROOT / "README.md").read_text().partition("\nExit codes: ")[2].partition("\n\n")[0]
    for code in (2, 4, 5):
        assert f"**{code}** the " in " ".join(codes.split())
