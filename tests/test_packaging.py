"""What pip and pipx get: the archives are complete, and what they install works and has types."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from textwrap import dedent

import pytest

import pooled_serve
from support.serve import environment
from support.servers import ROOT
from support.torture import torture

pytestmark = torture

USER = Path(__file__).with_name("packaging_user.py")

MISTAKES = """
    from pooled_serve import pooling
    from pooled_serve.pool import ConnectionPool

    ConnectionPool(lambda: 1, size=1)
    pooling.set_pool_size("4")
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Away from the checkout, so that what is imported is what was installed."""
    env = environment({"PYTHONPATH": None, **variables})
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*folders: str) -> set[str]:
    """Files of the checkout that are in git, or would be with the next commit."""
    kinds = ("--cached", "--others", "--exclude-standard")
    try:
        listed = run("git", "ls-files", "-z", *kinds, *folders, cwd=ROOT)
    except (OSError, AssertionError):
        pytest.skip("not a git checkout")
    return set(filter(None, listed.split("\0")))


class Tools:
    """An environment with what builds and checks archives."""

    def __init__(self, folder: Path) -> None:
        self.bin = make_venv(folder / "tools", "build", "twine", "mypy")
        self.dist = folder / "dist"
        run(self.bin / "python", "-m", "build", "-q", "-o", self.dist, ROOT, cwd=folder)
        (self.wheel,) = self.dist.glob("*.whl")
        (self.sdist,) = self.dist.glob("*.tar.gz")


def make_venv(folder: Path, *requirements: str | Path) -> Path:
    """The programs' folder of a new environment."""
    venv.create(folder, with_pip=True)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
    ]
    run(*pip, *requirements, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools(tmp_path_factory.mktemp("packaging"))


@pytest.fixture(scope="module")
def installed(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment with nothing but the wheel."""
    return make_venv(tmp_path_factory.mktemp("installed") / "venv", tools.wheel)


def metadata(tools: Tools) -> Message:
    with zipfile.ZipFile(tools.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_package_and_nothing_else(tools: Tools) -> None:
    with zipfile.ZipFile(tools.wheel) as wheel:
        names = set(wheel.namelist())
    info = f"pooled_serve-{pooled_serve.__version__}.dist-info"
    files = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert names - files - {f"{info}/licenses/LICENSE"} == tracked("pooled_serve")
    assert "pooled_serve/py.typed" in names
    assert tools.wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_has_all_that_is_needed_to_build_and_test_it(tools: Tools) -> None:
    with tarfile.open(tools.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    kept = {name for name in tracked() if not name.startswith(".")}
    assert names - {"PKG-INFO", ".gitignore"} == kept


def test_tests_run_from_the_sdist(tools: Tools, tmp_path: Path) -> None:
    with tarfile.open(tools.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = run(*pytest_here, "tests/preflight/test_plan.py", cwd=root, PYTHONPATH=".")
    assert re.search(r"^\d{2,} passed", done, re.M)


def test_twine_has_no_complaint(tools: Tools, tmp_path: Path) -> None:
    run(tools.bin / "twine", "check", "--strict", tools.wheel, tools.sdist, cwd=tmp_path)


def test_the_metadata_are_complete(tools: Tools) -> None:
    about = metadata(tools)
    assert about["Name"] == "pooled-serve"
    assert about["Version"] == pooled_serve.__version__
    assert about["Summary"]
    assert about["License-Expression"] == "MIT"
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/markdown"
    assert set(about.get_all("Provides-Extra", [])) == {"rsa", "metrics"}
    assert about["Author"]
    classifiers = about.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    assert "Operating System :: POSIX :: Linux" in classifiers


def test_the_command_is_the_same_as_in_the_checkout(installed: Path, tmp_path: Path) -> None:
    version = run(installed / "pooled-serve", "--version", cwd=tmp_path)
    assert version.startswith(f"pooled-serve {pooled_serve.__version__} · Django ")
    assert "--pool-size" in run(installed / "pooled-serve", "--help", cwd=tmp_path)
    assert run(installed / "python", "-m", "pooled_serve", "--version", cwd=tmp_path) == version


def test_the_command_works_through_a_link_as_pipx_makes_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "pooled-serve"
    link.symlink_to(installed / "pooled-serve")
    assert run(link, "--version", cwd=tmp_path, PATH="/usr/bin:/bin").startswith("pooled-serve ")


def test_its_data_are_installed(installed: Path, tmp_path: Path) -> None:
    """The page of the status listener is read from the package."""
    pages = sorted(Path(name).name for name in tracked("pooled_serve") if name.endswith(".html"))
    found = "from importlib.resources import files; print(*sorted("
    found += "f.name for f in files('pooled_serve').rglob('*') if f.name.endswith('.html')))"
    assert run(installed / "python", "-c", found, cwd=tmp_path).split() == pages


def test_users_get_types(tools: Tools, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER.read_text())
    (tmp_path / "mistakes.py").write_text(dedent(MISTAKES))
    mypy = (tools.bin / "mypy", "--strict", "--python-executable", installed / "python")
    run(*mypy, "user.py", cwd=tmp_path)
    with pytest.raises(AssertionError) as said:
        run(*mypy, "mistakes.py", cwd=tmp_path)
    assert "mistakes.py:5: error" in str(said.value)
    assert "mistakes.py:6: error" in str(said.value)
