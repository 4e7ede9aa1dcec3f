"""Options that cannot work: a code, one line that says what, one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import MakeProject
from pooled_serve.cli import make_command
from pooled_serve.options import OPTIONS
from pooled_serve.serve import app as server
from pooled_serve.serve import names
from support.command import EXIT_PLAN, EXIT_PROJECT, EXIT_USAGE, Here, run
from support.option_values import bad_values

PORTS = "→ use a port from 1 to 65535"

USAGE: dict[str, tuple[list[str], str, str, str]] = {
    "no application": ([], "PS405", "no application", "pooled-serve myproject.wsgi"),
    "unknown option": (["a", "--pool-sise", "4"], "PS402", "--pool-sise", "--pool-size?"),
    "unknown option of gunicorn": (["a", "--worker", "4"], "PS402", "--worker", "--workers?"),
    "unknown option like no other": (["a", "--xyzzy"], "PS402", "--xyzzy", "--help"),
    "unknown option near no other": (["a", "--foo"], "PS402", "--foo", "→ see pooled-serve --help"),
    **{
        f"other word {name}": (["a", name, "9"], "PS402", f"no option {name}", f"mean {meant}?")
        for name, meant in {
            "--max-connections": "--max-outstanding",
            "--max-conns": "--max-outstanding",
            "--pool-max": "--max-outstanding",
            "--port": "--bind 127.0.0.1:9",
            # SQLAlchemy
            "--max-overflow": "--max-outstanding",
            "--max-connection": "--max-outstanding",  # with a slip
            "--conection-timeout": "--pool-timeout",
            "--status-port": "--status",
            "--metrics": "--status",
            "--statsd": "--statsd-host",
            "--pool-per-host": "--max-per-host",
            "--check-client": "--client-check",
            "--leak-detection": "--leak-threshold",
            "--pool-recycle": "--conn-max-age",
            # psycopg_pool; HikariCP; DBCP; pools of Go; pools of JavaScript
            "--max-size": "--max-outstanding",
            "--min-size": "--pool-size",
            "--max-lifetime": "--conn-max-age",
            "--maximum-pool-size": "--max-outstanding",
            "--maximumPoolSize": "--max-outstanding",
            "--minimum-idle": "--pool-size",
            "--connection-timeout": "--pool-timeout",
            "--leak-detection-threshold": "--leak-threshold",
            "--max-total": "--max-outstanding",
            "--min-idle": "--pool-size",
            "--max-wait": "--pool-timeout",
            "--max-open-conns": "--max-outstanding",
            "--max-idle-conns": "--pool-size",
            "--conn-max-lifetime": "--conn-max-age",
            "--conn-lifetime": "--conn-max-age",
            "--max-age": "--conn-max-age",
            "--acquire-timeout": "--pool-timeout",
            "--queue-timeout": "--pool-timeout",
            "--checkout-timeout": "--pool-timeout",
            # a part too many, and letters too few
            "--max-conns-per-host": "--max-per-host",
            "--num-workers": "--workers",
            "--gracefultimout": "--graceful-timeout",
            "--access-log": "--access-logfile",
        }.items()
    },
    **{
        f"another pool's {name}": (["a", name, "9"], "PS402", f"no option {name}", f"→ {remedy}")
        for remedy, names in {
            # a part of a name is another: near in letters, and far in meaning
            "see pooled-serve --help": (
                "--wait-timeout",
                "--idle-timeout",
                "--query-timeout",
                "--write-timeout",
                "--lock-timeout",
                "--stop-timeout",
                "--retry-timeout",
                "--pool-idle-timeout",
                "--conn-max-idle",
                "--max-idle",
                "--max-waiting",
            ),
            "leave it out: idle connections are looked at before each use": (
                "--pool-pre-ping",
                "--conn-health-checks",
                "--test-on-borrow",
            ),
        }.items()
        for name in names
    },
    "size as an alias": (["a", "--pool", "4"], "PS401", "--pool: ", "→ use --pool-size 4"),
    "port alone": (["a", "--status", "24211"], "PS401", "--status: ", "→ use 127.0.0.1:24211"),
    **{
        f"bind {text}": (["a", "-b", text], "PS401", f"--bind: {says}", remedy)
        for text, says, remedy in (
            ("8000", "8000 is a port without a host", "use 127.0.0.1:8000, or :8000"),
            ("tcp://8000", "tcp://8000 is a port", "use 127.0.0.1:8000"),
            ("::1:8301", "must be HOST:PORT, unix:PATH or fd://N, not", "use [::1]:8301"),
            ("[::1]x:8301", "must be HOST:PORT", "for example 127.0.0.1:8000"),
            ("127.0.0.1:80:81", "must be HOST:PORT", "for example 127.0.0.1:8000"),
        )
    },
    "status without brackets": (["a", "--status", "::1:8301"], "PS401", "--status", "[::1]:8301"),
    "unknown short option": (["a", "-X"], "PS402", "-X", "--help"),
    "option without its value": (["a", "--pool-size"], "PS401", "--pool-size", "--pool-size N"),
    "last option without its value": (["a", "-b"], "PS401", "-b", "write -b ADDRESS"),
    "two applications": (["a", "b"], "PS401", "after the application a: b", "--help"),
    **{
        f"command {' '.join(args)}": (
            args,
            "PS401",
            f"no command '{word}'",
            f"pooled-serve {meant}",
        )
        for args, word, meant in (
            (["check", "a.wsgi"], "check", "a.wsgi --check"),
            (["a.wsgi", "check", "--pool-size", "4"], "check", "a.wsgi --check"),
            (["run", "a.wsgi"], "run", "a.wsgi"),
            (["serve", "a.wsgi", "--check"], "serve", "a.wsgi"),
            (["start", "a.wsgi", "-w", "2"], "start", "a.wsgi"),
        )
    },
    "gunicorn's number": (
        ["a", "-w", "many"],
        "PS401",
        "--workers: invalid int value",
        "a whole number, as in 1",
    ),
    "gunicorn's check": (["a", "-w", "-1"], "PS401", "--workers: ", "use a whole number"),
    "gunicorn's timeout": (["a", "--timeout=abc"], "PS401", "'abc'", "a whole number, as in 30"),
    "a size in words": (
        ["a", "--pool-size", "ten"],
        "PS401",
        "'ten'",
        "→ for example --pool-size 4",
    ),
    "no such mode": (
        ["a", "--pool-mode", "session"],
        "PS401",
        "'session'",
        "use request or transaction",
    ),
    "no seconds": (
        ["a", "--pool-timeout", "1s"],
        "PS401",
        "'1s'",
        "→ for example --pool-timeout 1",
    ),
    "no age": (["a", "--conn-max-age", "1h"], "PS401", "'1h'", "→ for example --conn-max-age 3600"),
    "address": (["a", "-b", "127.0.0.1:http"], "PS401", "no port 'http'", PORTS),
    "port": (["a", "-b", "127.0.0.1:99999"], "PS401", "--bind: there is no port '99999'", PORTS),
    "port of IPv6": (["a", "-b", "[::1]:99999"], "PS401", "--bind: there is no port", PORTS),
    "port of the page": (
        ["a", "--status", "[::1]:99999"],
        "PS401",
        "--status: must be HOST:PORT with a port from 1 to 65535, not",
        "for example --status [::1]:8001",
    ),
    "environment setting": (["a", "-e", "DEBUG"], "PS401", "'DEBUG'", "NAME=VALUE"),
    "folder": (["a", "--chdir", "/nowhere"], "PS401", "--chdir: ", "name a folder that exists"),
    "user": (["a", "--user", "no-such-user"], "PS401", "--user: ", "name a user"),
    "group": (["a", "--group", "no-such"], "PS401", "--group: ", "name a group"),
    "no such file": (
        ["a", "-c", "no.py"],
        "PS403",
        "there is no file no.py",
        "→ correct the path of -c",
    ),
    "a folder as the file": (["a", "-c", "/"], "PS403", "/ is a directory", "name a file in it"),
    "no such module": (["a", "-c", "python:no.conf"], "PS403", "python:no.conf", "-c FILE"),
    **{
        f"other spelling {name}": (["a", name, "9"], "PS402", name, f"did you mean {meant}?")
        for name, meant in {
            "--poolSize": "--pool-size",
            "--max_outstanding": "--max-outstanding",
        }.items()
    },
    "port of the site": (
        ["a", "-b", "127.0.0.1:24211", "--status", "127.0.0.1:24211"],
        "PS401",
        "--status: 127.0.0.1:24211 is where the application is served (-b)",
        "→ choose another port, for example --status 127.0.0.1:24212",
    ),
    **{
        f"worker class {name}": (["a", "-k", name], "PS404", repr(name), "remove -k")
        for name in ("sync", "gthread", "tornado", "asgi", "myproject.workers.MyWorker")
    },
}


def test_each_other_word_is_for_an_option() -> None:
    flags = [name for param in make_command().params for name in param.opts]
    for word, meant in names.SYNONYMS.items():
        if names.nearest(f"--{word}", flags) != f"--{meant}":
            say = f"SYNONYMS of serve/names.py: {word!r} is not found to mean --{meant}"
            pytest.fail(say, pytrace=False)


@pytest.mark.parametrize(("args", "code", "says", "remedy"), USAGE.values(), ids=USAGE.keys())
def test_usage(here: Here, args: list[str], code: str, says: str, remedy: str) -> None:
    here.run(*args).assert_one_problem(code, EXIT_USAGE, says, remedy)


# --- Values ------------------------------------------------------------------------------------


def assert_example(said: Any, written: str) -> None:
    """The remedy says what to use, or has an example that can be copied to where the value was."""
    _, _, remedy = said.output.partition("→ ")
    assert remedy.startswith(("use ", "see ", f"for example {written}")), remedy


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_bad_values(
    here: Here, option: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in bad_values(option):
        said = here.run("a", f"{option.flag}={value}")
        # That a flag takes no value is the remedy.
        remedy = "→ see " if option.is_flag else "→ "
        said.assert_one_problem("PS401", EXIT_USAGE, option.flag, remedy)
        assert_example(said, f"{option.flag} ")

        monkeypatch.setenv("GUNICORN_CMD_ARGS", f"{option.flag}='{value}'")
        said = here.run("a")
        said.assert_one_problem("PS401", EXIT_USAGE, f"{option.flag}: ", "→ ")
        assert_example(said, f"{option.flag} ")
        if not option.repeats:  # which gunicorn's parser lets pass
            said.assert_one_problem("PS401", EXIT_USAGE, "GUNICORN_CMD_ARGS: ")
        monkeypatch.delenv("GUNICORN_CMD_ARGS")

        if value:  # an empty variable is as good as none
            monkeypatch.setenv(option.variable, value)
            said = here.run("a")
            said.assert_one_problem("PS401", EXIT_USAGE, f"{option.variable}: ", "→ ")
            assert_example(said, f"{option.variable}=")
            monkeypatch.delenv(option.variable)

        here.conf(f"{option.setting} = {value!r}")
        said = here.run("a")
        said.assert_one_problem("PS401", EXIT_USAGE, "gunicorn.conf.py: ", "→ ")
        assert_example(said, f"{option.setting} = ")
        said.assert_one_problem("PS401", EXIT_USAGE, f"{option.setting}: ")
        assert option.flag not in said.output.replace(f"use {option.flag}", "")
        here.conf("")


def test_numbers_that_gunicorn_answers_with_a_traceback(project: MakeProject) -> None:
    folder = project()
    for args, env, says in (
        (["-w", "0"], {}, "--workers: must be a whole number above 0"),
        (["-b", "127.0.0.1:70000"], {}, "--bind: there is no port '70000'"),
        ([], {"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY: must be a whole number above 0, not 0"),
        ([], {"PORT": "http"}, "PORT: there is no port 'http'"),
        ([], {"PORT": "70000"}, "PORT: there is no port '70000'"),
        ([], {"WEB_CONCURRENCY": "auto"}, "WEB_CONCURRENCY: must be a whole number, not 'auto'"),
        ([], {"WEB_CONCURRENCY": "0"}, "PS401 WEB_CONCURRENCY: must be a whole number above 0"),
    ):
        done = run("mysite.wsgi", "--check", *args, cwd=folder, env=env)
        done.assert_one_problem("PS401", EXIT_USAGE, says)


# --- The configuration file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("pool_size = 0", "PS401", "py: pool_size: must be a whole number above 0, not 0"),
        ("pool_size = True", "PS401", "not True"),
        ("pool_timeout = -1.5", "PS401", "py: pool_timeout: must be a number of seconds"),
        ("pool_aliases = 4", "PS401", "py: pool_aliases: must be ALIAS:SIZE"),
        ("workers = 'x'", "PS401", "py: workers: "),
        ("workers = 0", "PS401", "py: workers: must be a whole number above 0"),
        ("bind = '127.0.0.1:70000'", "PS401", "py: bind: there is no port '70000'"),
        ("bind = 8000", "PS401", "py: bind: 8000 is a port without a host"),
        ("bind = ['127.0.0.1:8000', 8001]", "PS401", "py: bind: 8001 is a port without a host"),
        ("pool_status = '127.0.0.1:8000'", "PS401", "py: pool_status: 127.0.0.1:8000 is where"),
        ("wsgi_app = 4", "PS401", "wsgi_app: "),
        ("worker_class = 'sync'", "PS404", "'sync'"),
    ],
)
def test_bad_values_of_other_types_in_the_file(
    here: Here, source: str, code: str, says: str
) -> None:
    here.conf(source)
    here.run("a").assert_one_problem(code, EXIT_USAGE, says)


@pytest.mark.parametrize(
    ("source", "says", "remedy"),
    [
        (
            "workers = 3,",
            "py: workers: must not be a tuple, as (3,) is",
            "a comma too many? use workers = 3",
        ),
        ("proc_name = 'shop',", "as ('shop',) is", "a comma too many? use proc_name = 'shop'"),
        ("preload_app = True,", "as (True,) is", "a comma too many? use preload_app = True"),
        ("pool_size = 4,", "as (4,) is", "a comma too many? use pool_size = 4"),
        # With a comma or without.
        ("workers = 'x',", "workers: must be a whole number, not ('x',)", "use a whole number"),
        ("pool_size = 'x',", "pool_size: must be a whole number above 0", "for example pool_size"),
        ("timeout = [30]", "timeout: must be a whole number, not [30]", "use a whole number"),
        ("workers = 2.5", "workers: must be a whole number, not 2.5", "use a whole number"),
        ("bind = [8.5]", "bind: Not a string", "use HOST:PORT, as in 127.0.0.1:8000"),
        ("preload_app = 'maybe'", "preload_app: Invalid boolean: maybe", "use True or False"),
        ("proc_name = 4", "proc_name: Not a string: 4", "use a text in quotes"),
        ("loglevel = 10", "loglevel: Not a string: 10", "use a text in quotes, as in 'info'"),
        # Hooks.
        *(
            (source, f"{source[4:].partition('(')[0]}: has other arguments than {right}", right)
            for source, right in (
                ("def on_exit(a, b): ...", "(server)"),
                ("def post_fork(worker): ...", "(server, worker)"),
                ("def pre_request(): ...", "(worker, req)"),
                ("def post_request(worker): ...", "(worker, req, environ, resp)"),
                ("def ssl_context(config): ...", "(config, default_ssl_context_factory)"),
            )
        ),
        ("when_ready = 1", "when_ready: Value is not callable: 1", "write def when_ready(server)"),
        ("when_ready = 'no.such'", "when_ready: ", "write def when_ready(server): ..."),
        ("backlog = None", "backlog: must be a whole number, not None", "use a whole number"),
    ],
)
def test_values_that_are_no_number(here: Here, source: str, says: str, remedy: str) -> None:
    here.conf(source)
    if remedy.startswith("("):
        remedy = f"write def {says.partition(':')[0]}{remedy}: ..."
    here.run("a").assert_one_problem("PS401", EXIT_USAGE, says, f"→ {remedy}")


def test_a_stronger_source_than_the_file_is_named_as_it_was_written(here: Here) -> None:
    here.conf("workers = 2")
    here.run("a", "-w", "0").assert_one_problem("PS401", EXIT_USAGE, "PS401 --workers: must be")


NEARLY = {
    "status = '127.0.0.1:8001'": "pool_status",
    "replicas = 2": "pool_replicas",
    "strict = True": "pool_strict",
    "leak_threshold = 5": "pool_leak_threshold",
    "max_per_host = 60": "pool_max_per_host",
    "max_connections = 10": "max_outstanding",
    "pool_max = 10": "max_outstanding",
    "pool_sise = 4": "pool_size",
    "pool_max_outstanding = 4": "max_outstanding",
    "pool = ['default:4']": "pool_aliases",
    "max_request = 1000": "max_requests",
    "max_lifetime = 3600": "conn_max_age",
    "keep_alive = 5": "keepalive",
    "graceful_timout = 30": "graceful_timeout",
    "worker_conections = 100": "worker_connections",
    "worker = 3": "workers",
    "timeou = '60'": "timeout",
    "timeotu = 60": "timeout",
    "bnid = '127.0.0.1:24211'": "bind",
    "bimd = '127.0.0.1:24211'": "bind",
    "spww = True": "spew",
    "chdri = '/tmp'": "chdir",
    "preload = True": "preload_app",
    "preload_ap = True": "preload_app",
    "access_logfile = '-'": "accesslog",
    "log_level = 'info'": "loglevel",
    "access_log = '-'": "accesslog",
    "post_worker_int = lambda worker: None": "post_worker_init",
    "def when_redy(server): pass": "when_ready",
    # beside the setting
    "workerss = 7\nworkers = 2": "workers, which the file has, too",
    "timeuot = 3\ntimeout = 60": "timeout, which the file has, too",
}


@pytest.mark.parametrize(("source", "meant"), NEARLY.items())
def test_a_setting_of_the_file_that_is_nearly_one(
    project: MakeProject, source: str, meant: str
) -> None:
    folder = project(databases={})
    (folder / "gunicorn.conf.py").write_text(source)
    done = run("mysite.wsgi", "--check", cwd=folder)
    name = source.removeprefix("def ").split(" ")[0].split("(")[0]
    says = f"gunicorn.conf.py: there is no setting {name}"
    done.assert_one_problem("PS402", 0, says, f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("pool_pre_ping = True", "leave it out: idle connections are looked at before each use"),
        ("pool_idle_timeout = 30", "see pooled-serve --help"),
    ],
)
def test_a_setting_of_another_pool_that_is_none_here(
    project: MakeProject, source: str, remedy: str
) -> None:
    folder = project(databases={})
    (folder / "gunicorn.conf.py").write_text(source)
    done = run("mysite.wsgi", "--check", cwd=folder)
    done.assert_one_problem("PS402", 0, "py: there is no setting pool_", f"→ {remedy}")


OWN = (
    "import os as replicas\nstatus = 'starting'\nsettings = 1\n_pool_sise = 4\nport = 8000\n"
    "def pool_hook(): ...\ndef strict(): ...\ncheck = True\nsize = 'big'\nhosts = ['a']\n",
    # never read
    "cpu_count = 2\nworkers_per_core = 1\nmax_workers = 4\nhost = 'h'\nport = 1\nusers = ['a']\n"
    "web_concurrency = 2\nuse_loglevel = 'info'\naccesslog_var = '-'\nerrorlog_var = '-'\n",
    "log_dir = '/tmp'\nversion = '1'\ndebug = True\napp_name = 'shop'\ncores = 4\n"
    "graceful_timeout_str = '120'\nbind_env = None\nthreads_per_worker = 2\ndjango_settings = 1\n",
    "def number_of_workers(): ...\ndef ready(server): ...\ndef post_request_log(worker): ...\n",
    # near, and read
    "size = 4\nreplicas = 2\nworkers = size * replicas\nlog_level = 'info'\n"
    "loglevel = log_level\nkeep_alive = 5\ndef when_ready(server):\n    print(keep_alive)\n",
    # near, and not good for it
    "worker = 'first'\ntimouts = {'a': 1}\nkeep_alive = 'never'\n",
    "kind = 'web'\nbindings = 'x'\ngrouped = True\n",
    # another word for one that the file has
    "proc_name = name = 'shop'\npidfile = pid = 'shop.pid'\n",
    Path(__file__).with_name("image_conf.py").read_text(),
)


@pytest.mark.parametrize("source", OWN)
def test_other_names_in_the_file_are_the_users_own(project: MakeProject, source: str) -> None:
    folder = project(databases={})
    (folder / "gunicorn.conf.py").write_text(source)
    done = run("mysite.wsgi", "--check", "--strict", cwd=folder)
    assert done.code == 0, done.output
    assert "PS402" not in done.output


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("x = 1\n1/0", 2, "ZeroDivisionError"),
        ("import no_such_thing", 1, "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = (", 1, "SyntaxError"),
        ("\nimport sys\nsys.exit('not today')", 3, "SystemExit: not today"),
    ],
)
def test_configuration_file_that_fails(here: Here, source: str, line: int, error: str) -> None:
    here.conf(source)
    done = here.run("a")
    done.assert_one_problem("PS403", EXIT_USAGE, "gunicorn.conf.py", "correct it")
    assert f'gunicorn.conf.py", line {line}: {error}' in done.output


@pytest.mark.parametrize(
    ("cwd", "hint"),
    [
        (
            "..",
            "cd project1 first, and use mysite.wsgi there, so that its gunicorn.conf.py is read",
        ),
        ("mysite", "run it in the folder above, where manage.py and gunicorn.conf.py are"),
    ],
)
def test_a_hint_leads_to_where_the_configuration_file_is_read(
    project: MakeProject, cwd: str, hint: str
) -> None:
    folder = project(databases={})
    for name in ("manage.py", "gunicorn.conf.py"):
        (folder / name).touch()
    done = run("mysite.wsgi", "--check", cwd=folder / cwd)
    done.assert_one_problem("PS101", EXIT_PROJECT, "no module 'mysite'", f"→ {hint}")


@pytest.mark.parametrize("check", [True, False])
def test_a_configuration_file_where_chdir_leads_is_not_read(
    project: MakeProject, tmp_path: Path, check: bool
) -> None:
    folder = project(databases={}, settings="ALLOWED_HOSTS = []")  # so that it does not start
    file = folder / "gunicorn.conf.py"
    file.write_text("workers = 3\n")
    args = ("mysite.wsgi", "--chdir", str(folder), "--check" if check else "--strict")
    note = f"note --chdir {file} is not read, because the command was run in another folder"
    assert note in " ".join(run(*args, cwd=tmp_path).output.split())
    for cwd, option in ((tmp_path, f"-c{file}"), (folder, "--reload")):
        done = run(*args, option, cwd=cwd)
        assert "is not read" not in done.output
        assert not check or "3 workers ×" in done.output


def test_what_the_configuration_file_prints_is_seen(here: Here) -> None:
    here.conf("import sys\nprint('hello from the file', file=sys.stderr)")
    assert "hello from the file" in here.run().output


# --- The status page ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:24211", "[::]:24211"])
def test_a_status_page_for_everybody_is_worth_a_warning(project: MakeProject, address: str) -> None:
    folder = project(databases={})
    done = run("mysite.wsgi", "--check", "--status", address, cwd=folder)
    says = f"Anyone who can reach {address} can read the status page"
    done.assert_one_problem("PS407", 0, says, "the loopback address")
    done = run("mysite.wsgi", "--check", "--strict", "--status", address, cwd=folder)
    done.assert_one_problem("FAIL  PS407", EXIT_PLAN)


@pytest.mark.parametrize("address", [":24211", "127.0.0.1:24211", "unix:status.sock"])
def test_a_status_page_for_this_machine(project: MakeProject, address: str) -> None:
    folder = project(databases={})
    done = run("mysite.wsgi", "--check", "--strict", "--status", address, cwd=folder)
    assert done.code == 0, done.output
    shown = address if address.startswith("unix:") else "http://127.0.0.1:24211/"
    assert f"Status    {shown}\n" in done.output


@pytest.mark.parametrize("address", ["localhost", "[::1]", "[::1]:24212", ":24212", "tcp://h:1"])
def test_addresses_as_gunicorn_has_them(here: Here, address: str) -> None:
    here.conf(f"wsgi_app, bind = 'a', {address!r}")
    server.Application([]).cfg.check_bind()


# --- The environment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says", "remedy"),
    [
        ("--pool-sise 4", "PS402", "GUNICORN_CMD_ARGS: there is no option --pool-sise", "-size?"),
        ("--max-conns 4", "PS402", "GUNICORN_CMD_ARGS: there is no option", "--max-outstanding?"),
        ("--pool 4", "PS401", "GUNICORN_CMD_ARGS: --pool: must be ALIAS:SIZE", "use --pool-size 4"),
        ("--status 8001", "PS401", "GUNICORN_CMD_ARGS: --status: must", "use 127.0.0.1:8001"),
        ("--pool-size", "PS401", "GUNICORN_CMD_ARGS: --pool-size", "write --pool-size N"),
        ("--name 'unclosed", "PS401", "GUNICORN_CMD_ARGS: ", "put quotes around"),
        ("-k sync", "PS404", "'sync'", "→ remove -k sync from GUNICORN_CMD_ARGS"),
        ("--chdir /nowhere", "PS401", "GUNICORN_CMD_ARGS: --chdir: ", "name a folder"),
        ("--port 81", "PS402", "GUNICORN_CMD_ARGS: there is no option", "--bind 127.0.0.1:81?"),
        ("-c no.py", "PS403", "there is no file no.py", "the path of -c in GUNICORN_CMD_ARGS"),
    ],
)
def test_bad_arguments_from_the_environment(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    code: str,
    says: str,
    remedy: str,
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    here.run("a").assert_one_problem(code, EXIT_USAGE, says, remedy)


def test_a_variable_that_is_nearly_an_option_is_worth_a_warning(project: MakeProject) -> None:
    folder = project()
    env = {"POOLED_SERVE_POOLSIZE": "3", "POOLED_SERVE_SERVICE_HOST": "10.0.0.1"}
    done = run("mysite.wsgi", "--check", cwd=folder, env=env)
    done.assert_one_problem(
        "PS402", 0, "no variable POOLED_SERVE_POOLSIZE", "did you mean POOLED_SERVE_POOL_SIZE?"
    )
    assert run("mysite.wsgi", "--check", "--strict", cwd=folder, env=env).code == EXIT_PLAN
    done = run("mysite.wsgi", "--check", cwd=folder, env={"POOLED_SERVE_MAX_CONNECTIONS": "3"})
    done.assert_one_problem("PS402", 0, remedy="did you mean POOLED_SERVE_MAX_OUTSTANDING?")
