"""What the programs here have in common: whom to measure, and an environment for each of them."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHOP = ROOT / "examples" / "shop"
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contenders import contender  # noqa: E402
from private_database import PrivateDatabase  # noqa: E402

COMMON = ("django", "gunicorn", "gevent", "pymysql")  # all have these in the same versions

say = partial(print, file=sys.stderr, flush=True)


class Problem(SystemExit):
    """Why we cannot go on, and what the reader can do about it: one line each. Exit code 1."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"benchmark: {problem}\n→ {remedy}")


def chosen(
    parser: argparse.ArgumentParser, option: str, text: str, known: Sequence[str]
) -> list[str]:
    """In the order in which they are known."""
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{option}: {name!r} is none of {', '.join(known)}")
    return [name for name in known if name in names]


def make_environments(
    names: Sequence[str], *, install: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """A Python for each contender, and why the others have none."""
    wanted = [contender(name, 1) for name in names]
    if not install:
        for each in wanted:
            if each.packages:
                raise Problem(
                    f"{each.name} needs packages of its own",
                    "leave out --no-install, or name other --contenders",
                )
        return dict.fromkeys(names, Path(sys.executable)), {}
    ours = environment("pooled-serve", ["-e", str(ROOT)])
    constraints = versions(ours)
    pythons: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for each in wanted:
        if each.venv == "pooled-serve":
            pythons[each.name] = ours
            continue
        try:
            pythons[each.name] = environment(
                each.venv, ["gunicorn[gevent]", *constraints, *each.packages]
            )
        except subprocess.CalledProcessError as error:
            if not each.build:
                say(error.stdout)
                raise Problem(
                    f"pip could not install {shlex.join(each.packages)}",
                    "its output above says why",
                ) from error
            needs = f"{' '.join(each.packages)} cannot be built here; it needs: {each.build}"
            missing[each.name] = needs
            say(f"{each.name} is left out: {needs}")
    if not pythons:
        raise Problem("none of these contenders can be installed", "name other --contenders")
    return pythons, missing


def environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of a virtual environment that has the packages; made anew when they change."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    venv = ROOT / f".venv-benchmark-{name}-{version}"
    python, stamp = venv / "bin" / "python", venv / "made-from"
    made_from = "\n".join([sys.version, *packages, (ROOT / "pyproject.toml").read_text()])
    if not (stamp.exists() and stamp.read_text() == made_from):
        say(f"Making {venv.relative_to(ROOT)} ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run(
            [*pip, *packages],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        stamp.write_text(made_from)
    return python


def versions(python: Path) -> list[str]:
    """Of what all contenders have in common, as pip is told them."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if line.lower().partition("==")[0] in COMMON]


def shop_environment(database: PrivateDatabase) -> dict[str, str]:
    """Without the settings of whoever runs this for servers of their own."""
    foreign = ("POOLED_SERVE_", "GUNICORN_CMD_ARGS", "DJANGO_SETTINGS_MODULE", "CONN_MAX_AGE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "DATABASE_URL": database.url(),
        "DEBUG": "",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, SHOP, ROOT))),
    }
