"""What README.md shows is what happens: its commands run, its tables are those of the code."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import click
import pytest

import pooled_serve
from conftest import MakeProject, StartServe
from pooled_serve import cli, options
from support import command
from support.django_project import WSGI
from support.ports import free_port
from support.processes import MAX_WAIT_SECONDS
from support.serve import GUNICORN, POOLED_SERVE, environment
from support.servers import ROOT, Server
from support.text import find

README = (ROOT / "README.md").read_text()
SHOP = ROOT / "examples" / "shop"

QUERY = """
    from django.db import connection
    from django.http import HttpResponse

    def query(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return HttpResponse("ok")
"""


class Block(NamedTuple):
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)]


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def the_block(language: str, text: str) -> Block:
    (found,) = (block for block in blocks(language) if text in block.text)
    return found


def shell_lines() -> Iterator[str]:
    for block in blocks("sh"):
        for line in block.lines:
            yield " ".join(line.partition("  #")[0].split())


# Where each shell command of the README is run. Those that start with pooled-serve are run here.
RUN_BY = {
    "python3 examples/quickstart.py": "tests/examples/test_quickstart.py",
    "pip install pooled-serve": "examples/quickstart.py",  # as pip install -e
    "tests/run": ".ci/run",
    "PYTHON=python3.13 tests/run": ".ci/run",
    "tests/run tests/pool/test_pool.py -k waiters": "test_the_example_of_a_single_test_finds_tests",
}


def test_every_shell_command_is_run_somewhere() -> None:
    rest = []
    for line in shell_lines():
        if line.startswith("pooled-serve ") or "_POOLED_SERVE_COMPLETE" in line:
            continue
        where = RUN_BY[line]
        if "/" in where:
            assert (ROOT / where).is_file()
        else:
            assert where in globals()
        rest.append(line)
    assert sorted(rest) == sorted(RUN_BY)


def test_every_block_has_a_kind_that_is_checked() -> None:
    kinds = {"sh", "console", "python", "text", "dockerfile", "ini"}
    assert {block.language for block in BLOCKS} == kinds
    assert README.count("```") == 2 * len(BLOCKS)


# --- Tables ------------------------------------------------------------------------------------


def options_table() -> str:
    """The table of our own options, as README.md must have it."""
    made = cli.make_command()
    context = click.Context(made, info_name="pooled-serve", max_content_width=80)
    settings = {option.flag: option.setting for option in options.OPTIONS}
    rows = ["| option | setting | |", "|---|---|---|"]
    for param in made.params:
        if not isinstance(param, click.Option):
            continue
        if isinstance(param, cli.SettingOption) and param.opts[-1] not in settings:
            continue  # gunicorn's
        record = param.get_help_record(context)
        if record is None or "--version" in record[0]:
            continue
        flag, meaning = (text.replace("|", r"\|") for text in record)
        setting = settings.get(flag.split()[0])
        rows.append(f"| `{flag}` | {f'`{setting}`' if setting else ''} | {meaning} |")
    return "\n".join(rows)


def test_the_options_are_those_of_help(tmp_path: Path) -> None:
    table = options_table()
    assert table in README, f"README.md should have\n{table}"
    shown = "".join(command.run("--help", cwd=tmp_path).stdout.split())  # lines are broken there
    for row in table.splitlines()[2:]:
        flag, _, meaning = (cell.strip(" `") for cell in row.strip("|").split(" | "))
        for text in (flag, meaning):
            assert "".join(text.replace(r"\|", "|").split()) in shown


def test_the_problem_codes_are_those_of_the_code() -> None:
    package = (ROOT / "pooled_serve").rglob("*.py")
    told = {code for module in package for code in re.findall(r'"(PS\d{3})\b', module.read_text())}
    listed = re.findall(r"^\| (PS\d{3}) \| [^|]+ \| [^|]+ \|$", README, re.M)
    assert listed == sorted(told)


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = [c.split(" :: ") for c in project["classifiers"]]
    pythons = [c[-1] for c in classified if c[:-1] == ["Programming Language", "Python"]]
    pythons = sorted((p for p in pythons if "." in p), key=lambda p: int(p.split(".")[1]))
    djangos = sorted(c[-1] for c in classified if c[:-1] == ["Framework", "Django"])
    assert f"Python {pythons[0]} to {pythons[-1]}" in README
    assert f"Django {djangos[0]} to {djangos[-1]}" in README
    assert project["requires-python"] == f">={pythons[0]}"
    assert f"django>={djangos[0]}" in project["dependencies"]
    extras = re.findall(r"pooled-serve\[(\w+)\]", README)
    assert set(extras) <= set(project["optional-dependencies"])
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert find(r"^## (\S+)", changes, re.M).group(1) == pooled_serve.__version__
    assert f"Version {pooled_serve.__version__} is" in README


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists()


# --- Commands ----------------------------------------------------------------------------------


@pytest.fixture
def myproject(project: MakeProject) -> Path:
    """A project by the name that the README uses."""
    return renamed(project(QUERY))


def renamed(folder: Path) -> Path:
    for source in folder.rglob("*.py"):
        source.write_text(source.read_text().replace("mysite", "myproject"))
    (folder / "mysite").rename(folder / "myproject")
    return folder


def serving_commands() -> list[str]:
    docker = json.loads(the_block("dockerfile", "CMD").text.removeprefix("CMD "))
    (started,) = re.findall(r"^ExecStart=\S+/(.*)$", the_block("ini", "[Service]").text, re.M)
    typed = [line for line in shell_lines() if line.startswith("pooled-serve myproject")]
    typed.remove("pooled-serve myproject.wsgi --check")  # which serves nothing
    return [shlex.join(docker), started, *typed]


@pytest.mark.parametrize("line", serving_commands())
def test_commands_that_serve(line: str, myproject: Path, serve: StartServe, tmp_path: Path) -> None:
    program, app, *args = shlex.split(line)
    assert program == "pooled-serve"
    if "-b" in args:
        at = args.index("-b")
        assert args[at + 1].endswith(":8000")
        del args[at : at + 2]
    if "--status" in args:
        at = args.index("--status")
        assert args[at + 1].endswith(":8001")
        args[at + 1] = f"127.0.0.1:{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        # what Type=notify in the unit relies on
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(MAX_WAIT_SECONDS)
        server = serve(myproject, *args, app=app, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert server.get("/query").text == "ok"
        assert b"READY=1" in systemd.recv(1000)


def test_the_first_look_at_the_plan(myproject: Path) -> None:
    done = command.run("myproject.wsgi", "--check", cwd=myproject)
    assert done.code == 0
    assert "Ready. Nothing was started." in done.stdout


def test_the_worked_example_of_sizing_adds_up(myproject: Path) -> None:
    (line,) = (line for line in shell_lines() if "--replicas" in line)
    done = command.run(*shlex.split(line)[1:], "--check", cwd=myproject)
    assert done.code == 0, done.output
    assert re.search(r"2 × 3 × 20 = 120 +151", done.stdout)
    assert "120 / (2 × 3) = 20" in README


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.lines[0])
def test_the_plan_looks_like_that(block: Block, mariadb: Server) -> None:
    prompt, *shown = block.lines
    program, *args = shlex.split(prompt.removeprefix("$ "))
    assert program == "pooled-serve"
    done = command.run(*args, cwd=SHOP, env={"DATABASE_URL": mariadb.url()})
    assert done.code == (5 if "FAIL" in block.text else 0), done.output

    def pattern(lines: list[str]) -> list[str]:
        """Numbers, and the widths of columns with them, differ from machine to machine."""
        return [re.sub(r"\d+", "#", " ".join(line.split())) for line in lines if line.strip()]

    assert pattern(shown) == pattern(done.output.splitlines())


def test_an_example_of_the_configuration_file(myproject: Path, tmp_path: Path) -> None:
    source = the_block("python", "# gunicorn.conf.py").text.replace("replica", "default")
    (myproject / "gunicorn.conf.py").write_text(source)

    def pool(*args: str, **env: str) -> tuple[str | Any, ...]:
        done = command.run("myproject.wsgi", "--check", *args, cwd=myproject, env=env)
        assert "Server    3 workers" in done.stdout, done.output
        (row,) = re.findall(r"^  default  .*$", done.stdout, re.M)
        return find(r"/\w+ +(\d+) +(\d+) ", row).groups()

    assert pool() == ("8", "16")
    (myproject / "gunicorn.conf.py").write_text(re.sub("pool_aliases.*", "", source))
    assert pool() == ("5", "10")
    variable = {"POOLED_SERVE_POOL_SIZE": "6"}
    assert pool(**variable) == ("6", "10")
    assert pool("--pool-size", "2", **variable) == ("2", "10")
    for text in ("POOLED_SERVE_POOL_SIZE=6", "--pool-size 2"):
        assert text in README


def test_the_api_for_those_who_keep_their_launcher(
    project: MakeProject, serve: StartServe, mariadb: Server
) -> None:
    folder = project(QUERY, wsgi=dedent(WSGI) + the_block("python", "apply_patch()").text)
    server = serve(folder, "-k", "gevent", command=GUNICORN)
    before = mariadb.admin.status("Connections")
    assert {server.get("/query").text for _ in range(5)} == {"ok"}
    assert mariadb.admin.status("Connections") - before == 1


def test_the_pool_on_its_own() -> None:
    source = the_block("python", "ConnectionPool(").text
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(source, "README.md", "exec"), {"__name__": "readme"})
    shown = BLOCKS[BLOCKS.index(the_block("python", "ConnectionPool(")) + 1]

    def without_times(text: str) -> str:
        return re.sub(r"\d+\.\d+s", "#", text)

    assert without_times(shown.text) == without_times(said.getvalue())


CHECK_COMPLETION = {
    "bash": "COMP_WORDS=(pooled-serve --pool-s) COMP_CWORD=1; $(complete -p pooled-serve | "
    r"sed 's/.*-F \(\S*\) .*/\1/') pooled-serve --pool-s; echo ${COMPREPLY[@]}",
    "zsh": "print $_comps[pooled-serve]; "
    "COMP_WORDS='pooled-serve --pool-s' COMP_CWORD=1 "
    "_POOLED_SERVE_COMPLETE=zsh_complete pooled-serve",
    "fish": "complete -C 'pooled-serve --pool-s'",
}


@pytest.mark.parametrize("shell", CHECK_COMPLETION)
def test_completion(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    (line,) = (line for line in shell_lines() if f"{shell}_source" in line)
    (tmp_path / "pooled-serve").write_text(f'#!/bin/sh\nexec {shlex.join(POOLED_SERVE)} "$@"\n')
    (tmp_path / "pooled-serve").chmod(0o755)
    start = "autoload -Uz compinit && compinit -u -D;" if shell == "zsh" else ""
    done = subprocess.run(
        [program, "-c", f"{start}{line}\n{CHECK_COMPLETION[shell]}"],
        env=environment({"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "--pool-size" in done.stdout, done.stderr


def test_the_example_of_a_single_test_finds_tests() -> None:
    (line,) = (line for line in RUN_BY if "test_pool.py" in line)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *shlex.split(line)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "test_pool.py::" in done.stdout


def test_what_pins_a_lease_is_what_the_code_says() -> None:
    from pooled_serve.pool.metrics import PIN_REASONS

    table = README.partition("| what pins a connection | reason |\n|---|---|\n")[2]
    told = {row.strip("| ").split(" | ")[-1] for row in table.partition("\n\n")[0].splitlines()}
    assert told == set(PIN_REASONS)
