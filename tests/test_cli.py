"""The command line itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS

from pooled_serve import cli, options
from pooled_serve.problems import PROBLEMS, Problem
from pooled_serve.serve import app as server
from support.command import Here, run
from support.option_values import good_values
from support.serve import environment
from support.servers import ROOT

options.register_settings()
SETTINGS = [setting for setting in KNOWN_SETTINGS if setting.cli]
PACKAGE = ROOT / "pooled_serve"


# --- Help --------------------------------------------------------------------------------------


@pytest.fixture
def help_text(here: Here, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")  # wide terminals are no reason for wide lines
    done = here.run("--help")
    assert done.code == 0
    assert done.stderr == ""
    return done.stdout


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_help_is_grouped(help_text: str) -> None:
    found = sections(help_text)
    assert list(found)[:6] == [
        "Examples",
        "Connection Pool",
        "Start",
        "More about the Pool",
        "Config File",
        "Server Socket",
    ]
    for title, essential in (("Connection Pool", True), ("More about the Pool", False)):
        assert re.findall(r"^  (--\S+)", found[title], re.MULTILINE) == [
            option.flag for option in options.OPTIONS if option.essential is essential
        ]
    assert sum(option.essential for option in options.OPTIONS) == 6
    assert re.findall(r"^  (-.*?)  ", found["Start"], re.MULTILINE) == [
        "--check",
        "--advise ADDR",
        "--settings MODULE",
        "--explain CODE",
        "-v, --version",
        "-h, --help",
    ]


def test_help_reads_well(help_text: str) -> None:
    assert help_text.startswith("Usage: pooled-serve APP [OPTIONS]\n\nExamples:\n")
    assert max(map(len, help_text.splitlines())) <= 80
    assert not re.search(r":\w+:`|`|\*\w+\*|[^.:]\.\.\s", help_text), "markup"
    assert "[APP]" not in help_text
    assert "\n    pooled-serve myproject.wsgi --pool-size 4\n" in help_text  # an example


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_option_has_a_sentence(setting: Any) -> None:
    text = cli._help(setting)
    assert text.endswith(".")
    assert re.match(r"[A-Z]", text)


def test_help_shows_defaults(help_text: str) -> None:
    def default(flag: str) -> str | None:
        entry = re.search(
            rf"^  (?:-\w, )?{flag}\b(?:.*\n)(?: {{6,}}.*\n)*", help_text, re.MULTILINE
        )
        assert entry, flag
        found = re.search(r"Default: (.*)\.$", " ".join(entry.group().split()))
        return found and found.group(1)

    assert default("--pool-size") == "4"
    assert default("--max-outstanding") == "3 x pool-size, or --max-per-host if set"
    assert default("--pool-timeout") == "10"
    assert default("--conn-max-age") == "CONN_MAX_AGE of the settings if above 0, else 60"
    assert default("--workers") == "1"
    assert default("--bind") == "127.0.0.1:8000"
    assert default("--worker-class") == "gevent"
    assert default("--max-requests") == "0"
    assert default("--preload") is None
    # what depends on the machine, or is off with us
    assert default("--chdir") is None
    assert default("--user") is None
    assert "gunicorn.ctl" not in help_text


def test_version(here: Here) -> None:
    for flag in ("--version", "-v"):
        done = here.run(flag)
        assert done.code == 0
        for name in ("pooled-serve", "Django", "gunicorn", "gevent", "PyMySQL", "Python"):
            assert re.search(rf"\b{name} \d+\.\d+", done.stdout)


def test_as_a_module(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert done.code == 0
    assert done.stdout.startswith("pooled-serve ")


def test_output_that_cannot_show_an_arrow(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 0
    assert "gunicorn" in done.stdout
    done = run(cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 2
    assert "PS405" in done.stderr


@pytest.mark.parametrize("code", ["PS201", "ps201", "201"])
def test_explain(here: Here, code: str) -> None:
    done = here.run("--explain", code)
    assert done.code == 0
    first, *rest = done.stdout.splitlines()
    assert first == "PS201    There may be more connections than the server allows."
    names = [line.split()[0] for line in rest if not line.startswith(" ")]
    assert names == ["Cause", "Remedy", "Example"]


@pytest.mark.parametrize("code", ["PS999", "", "everything"])
def test_explain_what_does_not_exist(here: Here, code: str) -> None:
    done = here.run("--explain", code or "PS")
    done.assert_one_problem("PS401", 2, "there is no problem code", "README")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.code)
def test_each_problem_is_explained(problem: Problem) -> None:
    text = problem.explain()
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert not re.search(r"`|\]\(", text), "markup"
    for sentence in (problem.cause, problem.meaning):
        assert "  " not in sentence
    assert problem.example in text


# --- Completion --------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(here: Here, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_POOLED_SERVE_COMPLETE", f"{shell}_source")
    script = here.run()
    assert script.code == 0
    assert "pooled-serve" in script.stdout

    monkeypatch.setenv("_POOLED_SERVE_COMPLETE", f"{shell}_complete")
    word = "--pool-"
    monkeypatch.setenv("COMP_WORDS", f"pooled-serve {word}")
    monkeypatch.setenv("COMP_CWORD", word if shell == "fish" else "1")
    found = set(re.findall(r"--[\w-]+", here.run().stdout))
    assert found == {o.flag for o in options.OPTIONS if o.flag.startswith("--pool-")}


# --- Gunicorn's options ------------------------------------------------------------------------


def typed(setting: Any, folder: Path) -> tuple[list[str], object]:
    """Something to type for an option, and what its setting is then."""
    flag = setting.cli[-1]
    known = {
        "config": (f"{folder}/other.py", f"{folder}/other.py"),
        "worker_class": ("gevent", server.WORKER),
        "chdir": (f"{folder}/sub", f"{folder}/sub"),
        "raw_env": ("A=b c", ["A=b c"]),
        "user": ("0", 0),
        "group": ("0", 0),
        "umask": ("0o22", 0o22),
        "worker_tmp_dir": (f"{folder}/sub", f"{folder}/sub"),
        "forwarded_allow_ips": ("10.0.0.1,::2", ["10.0.0.1", "::2"]),
        "proxy_allow_ips": ("*", ["*"]),
        "uwsgi_allow_ips": ("*", ["*"]),
        "logger_class": ("gunicorn.glogging.Logger", "gunicorn.glogging.Logger"),
        "logconfig": (f"{folder}/other.py", f"{folder}/other.py"),
        "syslog_addr": ("udp://log:514", "udp://log:514"),
        "statsd_host": ("stats:8125", ("stats", 8125)),
        "proxy_protocol": ("v2", "v2"),
        "protocol": ("uwsgi", "uwsgi"),
        "ssl_version": ("TLS_SERVER", "TLS_SERVER"),
        "reload_extra_files": (f"{folder}/other.py", [f"{folder}/other.py"]),
        "cert_reqs": ("1", 1),
        "forwarder_headers": ("X_ONE,X_TWO", ["X_ONE", "X_TWO"]),
        "loglevel": ("debug", "debug"),
        "header_map": ("refuse", "refuse"),
        "http_protocols": ("h1", ["h1"]),
        "http2_cleartext": ("upgrade", "upgrade"),
        "http2_max_frame_size": ("20000", 20000),
        "asgi_loop": ("asyncio", "asyncio"),
        "asgi_lifespan": ("off", "off"),
        "http_parser": ("python", "python"),
        "root_path": ("/below", "/below"),
        "reload_engine": ("poll", "poll"),
        "dirty_apps": ("a:B", ["a:B"]),
    }
    if setting.name in known:
        text, value = known[setting.name]
        return [flag, text], value
    own = options.BY_SETTING.get(setting.name)
    if own is not None and not own.is_flag:
        text, value = next(pair for pair in good_values(own) if pair[1] != own.default)
        return [flag, text], value
    if setting.action == "store_const":
        return [flag], setting.const
    if setting.action not in (None, "append"):
        return [flag], True
    if setting.type is int or setting.meta == "INT":
        return [flag, "77"], 77
    if setting.action == "append":
        return [flag, "-one", flag, "two words"], ["-one", "two words"]
    return [flag, "some 'text'"], "some 'text'"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_option_of_gunicorn_arrives(
    here: Here, monkeypatch: pytest.MonkeyPatch, setting: Any
) -> None:
    if setting.name == "paste":
        pytest.skip("gunicorn reads it with a package of its own")
    (here.folder / "sub").mkdir()
    (here.folder / "other.py").touch()
    arguments, expected = typed(setting, here.folder)
    arrived: list[server.Application] = []

    def catch(application: server.Application, *, check: bool) -> None:
        arrived.append(application)
        raise SystemExit

    monkeypatch.setattr(server, "serve", catch)
    done = here.run(*arguments, "mysite.wsgi")
    assert arrived, done.output
    assert arrived[0].app_uri == "mysite.wsgi"
    found = arrived[0].cfg.settings[setting.name].get()
    assert found == expected
    assert type(found) is type(expected)


def test_an_optional_value_may_be_left_out(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(*line: str) -> list[str]:
        command = cli.make_command()
        context = command.make_context("pooled-serve", list(line))
        return cli._for_gunicorn(context, command.params)

    assert arguments("app", "--proxy-protocol") == ["--proxy-protocol=auto"]
    assert arguments("app", "--proxy-protocol", "-w", "2") == [
        "--workers=2",
        "--proxy-protocol=auto",
    ]
    assert arguments("app", "--proxy-protocol=v1") == ["--proxy-protocol=v1"]
    assert arguments("app") == []


# --- How the package is put together -----------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import pooled_serve.cli, pooled_serve.serve.app", "django"),
        ("import pooled_serve.preflight.plan, pooled_serve.options, pooled_serve.pool", "django"),
        ("import pooled_serve.preflight.render, pooled_serve.preflight.runner", "django"),
        (
            "import pooled_serve.serve.worker, pooled_serve.driver.connection",
            "django",
        ),  # before the fork
        ("import pooled_serve.pool", "pymysql"),
        # what makes --help and completion quick
        (
            "import sys; sys.argv[1:] = ['--help']; from pooled_serve.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass",
            "gevent|django|pymysql|gunicorn.arbiter|asyncio",
        ),
    ],
)
def test_imports_come_late(statement: str, unwanted: str) -> None:
    code = f"{statement}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    modules = done.stderr.split()
    assert "pooled_serve" in modules
    assert [m for m in modules if re.match(rf"({unwanted})(\.|$)", m)] == []


def test_the_package_itself_is_not_on_the_path(tmp_path: Path) -> None:
    """After USR2 the command runs as a file; "import options" must not find ours."""
    code = (
        "import runpy, sys\n"
        "sys.argv[:] = ['pooled-serve', '--version']\n"
        f"sys.path.insert(0, {str(PACKAGE)!r})\n"
        "try: runpy.run_path(sys.path[0] + '/__main__.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"assert {str(PACKAGE)!r} not in sys.path"
    )
    env = environment() | {"PYTHONPATH": os.fspath(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, check=True)
