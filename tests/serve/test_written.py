"""Messages name settings as they were written, wherever that was."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import MakeProject
from pooled_serve.errors import EXIT_SERVER, Finding, Level
from pooled_serve.options import BY_SETTING
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport
from pooled_serve.serve import app as server
from pooled_serve.serve.config import Config
from pooled_serve.serve.written import Written
from support.command import EXIT_USAGE, Here, run
from support.django_project import SQLITE
from support.plans import database

idle, busy, hasty = database(), database(in_use=120), database(wait_timeout=30)


POOLING_REMEDY = "delete the calls; use --pool-size and --max-outstanding"
SOURCES = ("command line", "variables", "GUNICORN_CMD_ARGS", "file")


def start(
    here: Here, monkeypatch: pytest.MonkeyPatch, source: str, written: dict[str, object]
) -> server.Application:
    """A configuration that has these settings from one source."""
    settings = Config().settings
    arguments = [f"{settings[name].cli[-1]}={value}" for name, value in written.items()]
    if source == "file":
        here.conf("\n".join(f"{name} = {value!r}" for name, value in written.items()))
    elif source == "GUNICORN_CMD_ARGS":
        monkeypatch.setenv(source, " ".join(arguments))
    elif source == "variables":
        for name, value in written.items():
            flag = settings[name].cli[-1].removeprefix("--").replace("-", "_").upper()
            variable = "WEB_CONCURRENCY" if name == "workers" else f"POOLED_SERVE_{flag}"
            monkeypatch.setenv(variable, str(value))
            if name == "workers":  # which gunicorn reads when it is imported
                monkeypatch.setattr(type(settings[name]), "default", value)
    return server.Application([*(arguments if source == "command line" else ()), "a"])


@dataclass(frozen=True)
class Case:
    """Settings that contradict each other or the server, and remedies with options."""

    code: str
    written: dict[str, object]
    remedy: str
    message: str = ""
    server: DatabaseReport = idle


CASES = (
    Case(
        "PS201",
        {"max_outstanding": 60, "workers": 3},
        "use --max-per-host 120 (best: the workers share them), or {max_outstanding=40}, which "
        "leaves 31",
    ),
    Case("PS201", {"pool_aliases": "default:200:200"}, "use {pool_aliases=default:120:120}, which"),
    Case(
        "PS201",
        {"max_outstanding": "unlimited", "worker_connections": 500},
        "use {max_outstanding=120}, or {worker_connections=120}, which leaves",
    ),
    Case("PS201", {"pool_max_per_host": 200}, "use {pool_max_per_host=120}, which"),
    Case("PS202", {"max_outstanding": 60}, "use {max_outstanding=31}, which", "", busy),
    Case("PS203", {"conn_max_age": 60}, "use {conn_max_age=24}, or on", "connections live", hasty),
    Case(
        "PS204",
        {"pool_size": 4, "max_outstanding": 3},
        "use {pool_size=3}, or at least {max_outstanding=4}",
        "{max_outstanding=3} is smaller than {pool_size=4}: ",
    ),
    Case(
        "PS204",
        {"pool_size": 4, "pool_max_per_host": 3},
        "use {pool_size=3}, or at least {pool_max_per_host=4}",
        "{pool_max_per_host=3} is smaller than {pool_size=4}: ",
    ),
    Case(
        "PS204",
        {"pool_aliases": "default:4:3"},
        "use {pool_aliases=default:3:3}, or {pool_aliases=default:4:4}",
        "{pool_aliases}: the cap 3 is smaller than the size 4: ",
    ),
    Case(
        "PS204",
        {"pool_aliases": "default:4", "max_outstanding": 3},
        "use {pool_aliases=default:3:3}, or {pool_aliases=default:4:4}",
        "{max_outstanding=3} is smaller than the size 4 of {pool_aliases}: ",
    ),
    Case("PS205", {"pool_aliases": "shop:4"}, "use one of: default", "{pool_aliases} names the "),
    Case("PS206", {"conn_max_age": "none"}, "use {conn_max_age=3600}"),
    Case("PS207", {"pool_size": 4}, "delete the calls; use {pool_size} and --max-outstanding"),
    Case("PS208", {"max_outstanding": 150}, "use {max_outstanding=120}, which leaves"),
    Case("PS407", {"pool_status": "0.0.0.0:8001"}, "give {pool_status} the loopback address"),
    Case(
        "",
        {"max_outstanding": 30, "pool_max_per_host": 20},
        "",
        "{max_outstanding=30} means 20 here: ",
    ),
)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {' '.join(case.written)}")
def test_a_problem_names_settings_as_they_were_written(
    here: Here, monkeypatch: pytest.MonkeyPatch, case: Case, source: str
) -> None:
    if source == "variables" and "worker_connections" in case.written:
        return  # gunicorn has no variable for it
    application = start(here, monkeypatch, source, case.written)
    application._is_check = True
    warnings = (Finding(Level.WARN, "PS207", "", "", POOLING_REMEDY),)
    application._report = ProjectReport("a", databases=(case.server,), warnings=warnings)
    application._make_plan()
    (found,) = (
        finding
        for finding in application.plan.findings
        if finding.code == case.code and (finding.code or "means" in finding.message)
    )
    for told, words in ((found.message, case.message), (found.hint, case.remedy)):
        expected = re.sub(
            r"\{(\w+)=?(\S*?)\}",
            lambda match: in_words_of(source, application.cfg, *match.groups()),
            words,
        )
        assert told.startswith(expected), told


def in_words_of(source: str, cfg: Config, name: str, value: str) -> str:
    """How a setting is written there."""
    if source == "variables":
        variable = "WEB_CONCURRENCY" if name == "workers" else BY_SETTING[name].variable
        return f"{variable}={value}" if value else variable
    if source == "file":
        text = value if value.isdecimal() else repr(value)
        return f"{name} = {text} in gunicorn.conf.py" if value else f"{name} in gunicorn.conf.py"
    written = f"{cfg.settings[name].cli[-1]} {value}".strip()
    return f"{written} in {source}" if source == "GUNICORN_CMD_ARGS" else written


# --- Where several sources have it -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "variable", "source", "remedy"),
    [
        (["-k", "sync"], "", "", "-k sync from the command line"),
        ([], "-k gthread", "", "-k gthread from GUNICORN_CMD_ARGS"),
        ([], "", "worker_class = 'sync'", "worker_class = 'sync' from gunicorn.conf.py"),
        (
            ["-k", "sync"],
            "-k gthread",
            "worker_class = 'tornado'",
            "-k sync from the command line, and -k gthread from GUNICORN_CMD_ARGS, "
            "and worker_class = 'tornado' from gunicorn.conf.py",
        ),
        (["-k", "sync"], "-k gevent", "worker_class = 'gevent'", "-k sync from the command line"),
        ([], "--worker-class=sync", "worker_class = None", "-k sync from GUNICORN_CMD_ARGS"),
    ],
)
def test_a_worker_class_is_removed_from_where_it_is(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str,
    source: str,
    remedy: str,
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", variable)
    here.conf(source)
    done = here.run("a", *arguments)
    done.assert_one_problem("PS404", EXIT_USAGE, "the worker class is", f"→ remove {remedy}")
    assert done.output.endswith(f"{remedy}\n")


def test_a_file_of_another_folder_is_named_with_its_path(here: Here) -> None:
    """There may be several of this name; the remedy has the path as the problem has it."""
    file = Path(here.folder) / "other" / "g.py"
    file.parent.mkdir()
    file.write_text("worker_class = 'sync'")
    done = here.run("a", "-c", "other/g.py")
    remedy = "→ remove worker_class = 'sync' from other/g.py"
    done.assert_one_problem("PS404", EXIT_USAGE, "the worker class is", remedy)
    file.write_text("pool_size = 0")
    done = here.run("a", "-c", "other/g.py")
    done.assert_one_problem("PS401", EXIT_USAGE, "other/g.py: pool_size")


def test_the_source_that_counts_is_named(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*arguments: str) -> str:
        return server.Application([*arguments, "a"]).cfg.named("pool_size")

    here.conf("pool_size = 4")
    assert named() == f"{here.folder}/gunicorn.conf.py: pool_size"
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--pool-size 4")
    assert named() == "GUNICORN_CMD_ARGS: --pool-size"
    monkeypatch.setenv("POOLED_SERVE_POOL_SIZE", "4")
    assert named() == "POOLED_SERVE_POOL_SIZE"
    assert named("--pool-size=4") == "--pool-size"


def test_a_bad_value_is_looked_for_where_it_is(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--user no-such-user")
    done = here.run("a", "--user", "root")
    done.assert_one_problem("PS401", EXIT_USAGE, "GUNICORN_CMD_ARGS: --user: No such user")


def test_only_what_was_written_elsewhere_is_rewritten() -> None:
    written = Written(Config().settings)
    text = "use --pool-size 4 --max-outstanding 12, or -b HOST:PORT (ulimit -n), --check or -h HOST"
    assert written.as_written(text) == text
    written.add("the command line", {"max_outstanding": 60, "workers": None})
    assert written.as_written(text) == text
    written.add("POOLED_SERVE_POOL_SIZE", {"pool_size": "60"})
    written.add(
        "/srv/my.py", {"bind": ["h:80"], "max_outstanding": 70, "proc_name": "n"}, in_file=True
    )
    assert written.as_written(text) == (
        "use POOLED_SERVE_POOL_SIZE=4 and --max-outstanding 12, or bind = 'HOST:PORT' in "
        "/srv/my.py (ulimit -n), --check or -h HOST"
    )


def test_an_address_in_use_is_changed_where_it_was_written(project: MakeProject) -> None:
    folder = project(databases=SQLITE)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (folder / "gunicorn.conf.py").write_text(f"bind = '127.0.0.1:{port}'")
        done = run("mysite.wsgi", cwd=folder)
    remedy = "listen elsewhere with bind = 'HOST:PORT' in gunicorn.conf.py"
    done.assert_one_problem("PS501", EXIT_SERVER, f"127.0.0.1:{port} is in use", remedy)
