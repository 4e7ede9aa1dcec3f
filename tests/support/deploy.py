"""The recipes in examples/deploy, read for tests of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from gunicorn.config import GracefulTimeout

from conftest import MakeProject
from pooled_serve.options import OPTIONS
from support import debian
from support.servers import EXAMPLES, ROOT, Database, Server
from support.text import find

DEPLOY = EXAMPLES / "deploy"
BIN = Path(sys.executable).parent
README = (DEPLOY / "README.md").read_text()
GRACEFUL = GracefulTimeout.default
POOL_TIMEOUT = float(str(next(o.default for o in OPTIONS if o.flag == "--pool-timeout")))
SETTINGS = next(s for s in re.findall(r"```python\n(.*?)```", README, re.S) if "DATABASES" in s)


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


def unit(section: str, name: str = "pooled-serve.service") -> dict[str, list[str]]:
    (body,) = re.findall(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", text(name), re.M | re.S)
    settings: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", body).splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def write_myproject(project: MakeProject) -> Path:
    """A project with the settings of README.md."""
    head = "from pathlib import Path\nBASE_DIR = Path(__file__).parent\n"
    return project(
        ROOT / "tests" / "examples" / "deploy_views.py",
        databases={},
        settings=f"{head}{SETTINGS}\nALLOWED_HOSTS.append('')\n",
    )


# --- Fixtures ----------------------------------------------------------------------------------


@pytest.fixture
def myproject(project: MakeProject) -> Path:
    return write_myproject(project)


@pytest.fixture
def env(mariadb: Server, tmp_path: Path) -> dict[str, str]:
    return variables(mariadb.create_database(), tmp_path)
