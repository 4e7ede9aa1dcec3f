"""What README.md and its neighbours show is what happens: commands run, links lead somewhere."""

from __future__ import annotations

import doctest
import os
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

import pytest

import pooled_serve
import pooled_serve.pool
from conftest import MakeProject, StartServe
from pooled_serve import options, pooling
from pooled_serve.tuning import switches
from support import command
from support.django_project import WSGI
from support.ports import free_port
from support.processes import MAX_WAIT_SECONDS
from support.readme_tables import options_table
from support.serve import GUNICORN, POOLED_SERVE, environment
from support.servers import ROOT, Server
from support.text import find, same_names
from support.torture import torture

README = (ROOT / "README.md").read_text()
# Those with commands and examples to run, and all whose links must lead somewhere.
DOCUMENTS = [
    "README.md",
    "examples/deploy/README.md",
    "examples/benchmark/README.md",
    "tests/README.md",
]
LINKED = [*DOCUMENTS, ".github/CONTRIBUTING.md", ".github/SECURITY.md"]
TEXTS = {name: (ROOT / name).read_text() for name in LINKED}
LONGEST, LONGEST_FIRST_PART = 450, 120
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


BLOCKS = [
    Block(*found)
    for name in DOCUMENTS
    for found in re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[name], re.M | re.S)
]


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def the_block(language: str, text: str) -> Block:
    (found,) = (block for block in blocks(language) if text in block.text)
    return found


def shell_lines() -> Iterator[str]:
    for block in blocks("sh"):
        for line in block.lines:
            yield " ".join(line.partition("  #")[0].split())


# Where each shell command is run. Those that start with pooled-serve are run here.
RUN_BY = {
    "python3 examples/quickstart.py": "tests/examples/test_quickstart.py",
    "python3 examples/benchmark/compare.py": "tests/examples/test_benchmark.py",
    "python3 examples/benchmark/overload.py": "tests/examples/test_overload_simulation.py",
    "pip install pooled-serve": "examples/quickstart.py",  # as pip install -e
    "tests/run": ".ci/run",
    "tests/run --quick": "test_a_quick_run_takes_something_of_everything",
    "PYTHON=python3.13 tests/run": ".ci/run",
    "TORTURE=1 tests/run tests/pool/test_pool.py": ".ci/run",
    "tests/run tests/pool/test_pool.py -k waiters": "test_the_example_of_a_single_test_finds_tests",
}


def test_every_shell_command_is_run_somewhere() -> None:
    rest = []
    for line in shell_lines():
        if line in COMPLETIONS.values() or " pooled-serve myproject" in f" {line}":
            continue
        rest.append(line)
    same_names(
        rest,
        list(RUN_BY),
        lacks="no document has the command {!r} any more: take it out of RUN_BY in this file",
        surplus="nothing runs the command {!r} of a document: say in RUN_BY in this file what does",
    )
    for line, where in RUN_BY.items():
        found = (ROOT / where).is_file() if "/" in where else where in globals()
        assert found, f"RUN_BY in this file: there is no {where}, which is to run {line!r}"


def test_every_block_has_a_kind_that_is_checked() -> None:
    kinds = {"sh", "console", "python", "text"}
    for block in BLOCKS:
        assert block.language in kinds, (
            f"nothing checks a block of kind {block.language!r}: {kinds}"
        )
    marks = sum(TEXTS[name].count("```") for name in DOCUMENTS)
    assert marks == 2 * len(BLOCKS), "a block of a document has no end, or stands further in"


def test_the_readme_stays_short() -> None:
    first = README.partition("\n## Sizing\n")[0]
    for name, text, most in (
        ("README.md", README, LONGEST),
        ("README.md, before its chapters,", first, LONGEST_FIRST_PART),
    ):
        lines = len(text.splitlines())
        if lines > most:
            pytest.fail(
                f"{name} has {lines} lines, at most {most}: shorten or merge", pytrace=False
            )


# --- Facts -------------------------------------------------------------------------------------


def test_the_options_are_those_of_help(tmp_path: Path) -> None:
    shown = "".join(command.run("--help", cwd=tmp_path).stdout.split())  # lines are broken there
    for row in options_table().splitlines()[2:]:
        flag, _, meaning = (cell.strip(" `") for cell in row.strip("|").split(" | "))
        for text in (flag, meaning):
            found = "".join(text.replace(r"\|", "|").split()) in shown
            assert found, f"--help of {flag} does not say what README.md's table has: {text}"


def test_the_six_options_are_those_of_help() -> None:
    part = README.partition("## The six options\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(--[\w-]+)", part, re.M)
    same_names(
        told,
        [option.flag for option in options.OPTIONS if option.essential],
        lacks="README.md's table of the six options lacks {}, which is essential in options.py",
        surplus="README.md's table of the six options has {}, which is not essential in options.py",
    )


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = [c.split(" :: ") for c in project["classifiers"]]
    pythons = [c[-1] for c in classified if c[:-1] == ["Programming Language", "Python"]]
    pythons = sorted((p for p in pythons if "." in p), key=lambda p: int(p.split(".")[1]))
    djangos = sorted(c[-1] for c in classified if c[:-1] == ["Framework", "Django"])
    assert f"Python {pythons[0]} to {pythons[-1]}" in README
    assert f"Django {djangos[0]} to {djangos[-1]}" in README
    assert project["requires-python"] == f">={pythons[0]}"
    (django,) = (found for found in project["dependencies"] if found.startswith("django"))
    assert django.startswith(f"django>={djangos[0]}.")
    extras = re.findall(r"pooled-serve\[(\w+)\]", README)
    assert set(extras) <= set(project["optional-dependencies"])
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert find(r"^## (\S+)", changes, re.M).group(1) == pooled_serve.__version__
    assert f"Version {pooled_serve.__version__} is" in README


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "](" in text])
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name} links to {target}: there is no {path}"
        found = not anchor or anchor in anchors(path.read_text())
        assert found, f"{name} links to {target}: {path.name} has no such heading"


def anchors(text: str) -> set[str]:
    """Those that GitHub and PyPI make of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_contents_name_all_chapters() -> None:
    contents = " ".join(paragraph("[Sizing](#sizing) ·").split())
    listed = re.findall(r"\[([^]]+)\]\(#[^)]+\)", contents)
    chapters = re.findall(r"^## (.+)$", README[README.index("\n## Sizing") :], re.M)
    assert listed == chapters, "README.md's line of contents is not its headings in their order"


def paragraph(begin: str) -> str:
    """The paragraph of README.md that begins like that."""
    return README[README.index(f"\n\n{begin}") + 2 :].partition("\n\n")[0]


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
    typed = [line for line in shell_lines() if "pooled-serve myproject" in line]
    typed.remove("pooled-serve myproject.wsgi --check")  # which serves nothing
    return typed


@pytest.mark.parametrize("line", serving_commands())
def test_commands_that_serve(line: str, myproject: Path, serve: StartServe, tmp_path: Path) -> None:
    before, found, rest = line.partition("pooled-serve ")
    assert found
    variables = dict(word.split("=", 1) for word in shlex.split(before))
    app, *args = shlex.split(rest)
    if "--status" in args:
        at = args.index("--status")
        assert args[at + 1].endswith(":8001")
        args[at + 1] = f"127.0.0.1:{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        # what Type=notify in a unit relies on
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(MAX_WAIT_SECONDS)
        variables["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        server = serve(myproject, *args, app=app, env=variables)
        assert server.get("/query").text == "ok"
        assert b"READY=1" in systemd.recv(1000)


def test_the_first_look_at_the_plan(myproject: Path) -> None:
    done = command.run("myproject.wsgi", "--check", cwd=myproject)
    assert done.code == 0
    assert "Ready. Nothing was started." in done.stdout


def test_the_worked_examples_of_sizing_add_up(myproject: Path) -> None:
    lines = [line for line in shell_lines() if "--replicas" in line]
    sums = [r"2 × 60 per host = 120 +151", r"2 × 3 × 20 = 120 +151"]
    for line, expected in zip(lines, sums, strict=True):
        done = command.run(*shlex.split(line)[1:], "--check", cwd=myproject)
        assert done.code == 0, done.output
        assert re.search(expected, done.stdout)
    for text in ("120 / 2 = 60", "120 / (2 × 3) = 20"):
        assert text in " ".join(README.split())


@pytest.fixture(scope="module")
def shop_database(mariadb: Server) -> str:
    """The shop's, with its tables."""
    url = mariadb.url()
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity=0"],
        cwd=SHOP,
        env=environment({"DATABASE_URL": url}),
        check=True,
    )
    return url


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.lines[0])
def test_the_plan_looks_like_that(block: Block, shop_database: str) -> None:
    prompt, *shown = block.lines
    program, *args = shlex.split(prompt.removeprefix("$ "))
    assert program == "pooled-serve"
    done = command.run(*args, cwd=SHOP, env={"DATABASE_URL": shop_database})
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
        assert text in TEXTS["examples/deploy/README.md"]


def test_the_api_for_those_who_keep_their_launcher(
    project: MakeProject, serve: StartServe, mariadb: Server
) -> None:
    told = find(r"::\n\n((?: {4}.*\n|\n)+)", str(pooling.__doc__)).group(1)
    assert "pooling.apply_patch()" in told
    folder = project(QUERY, wsgi=dedent(WSGI) + dedent(told))
    server = serve(folder, "-k", "gevent", command=GUNICORN)
    before = mariadb.admin.status("Connections")
    assert {server.get("/query").text for _ in range(5)} == {"ok"}
    assert mariadb.admin.status("Connections") - before == 1


def test_the_pool_on_its_own() -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    done = doctest.testmod(pooled_serve.pool, optionflags=flags)
    assert done.attempted == 9
    assert not done.failed  # it prints what differs


def test_the_switches_are_those_of_the_code() -> None:
    (line,) = (line for line in shell_lines() if line.startswith(f"{switches.VARIABLE}="))
    named = line.removeprefix(f"{switches.VARIABLE}=").split()[0].split(",")
    table = TEXTS["examples/benchmark/README.md"].partition("| switch | without it |")[2]
    rows = re.findall(r"`([\w-]+)`", table.partition("\n\n")[0])
    for where, told in (("README.md's command", named), ("examples/benchmark/README.md", rows)):
        same_names(
            told,
            switches.NAMES,
            lacks=f"{where} lacks the switch {{}} of tuning/switches.py: add it",
            surplus=f"{where} has a switch {{}}, which tuning/switches.py has not, or twice",
        )
    assert f"`{switches.VARIABLE}`" in README


COMPLETIONS = {
    shell: line
    for line in shell_lines()
    for shell in re.findall(r"_POOLED_SERVE_COMPLETE=(\w+)_source", line)
}
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
    line = COMPLETIONS[shell]
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


def collected(*args: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *args],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TORTURE"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_the_example_of_a_single_test_finds_tests() -> None:
    (line,) = (line for line in RUN_BY if "test_pool.py -k" in line)
    assert any("test_pool.py::" in found for found in collected(*shlex.split(line)[1:]))


@torture
def test_a_quick_run_takes_something_of_everything() -> None:
    everyday, quick = collected(), collected("--quick")
    assert len(quick) < len(everyday)
    folders = {line.partition("::")[0].rpartition("/")[0] for line in everyday}
    assert {line.partition("::")[0].rpartition("/")[0] for line in quick} == folders
