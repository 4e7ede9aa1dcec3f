"""pooled-serve as a command that ends by itself: --check, --help, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from gunicorn.config import Chdir

from pooled_serve import cli
from pooled_serve.preflight.runner import SLOW_AFTER_SECONDS
from pooled_serve.serve import early
from support.serve import POOLED_SERVE, environment

# What only a busy machine has to say.
LOADS_FOR_LONG = re.compile(
    rf".*PS111 .* is still being loaded after {SLOW_AFTER_SECONDS:g}s\n +→ .*\n"
)

EXIT_USAGE, EXIT_PROJECT, EXIT_PLAN, EXIT_DATABASE = 2, 4, 5, 6


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def assert_one_problem(
        self, code: str, exit_code: int, says: str = "", remedy: str = ""
    ) -> None:
        """One line of problem, one line of remedy under it, and the exit code that says so."""
        lines = self.output.splitlines()
        problems = [line for line in lines if re.search(r"\bPS\d{3}\b", line)]
        remedies = [line for line in lines if line.lstrip().startswith("→ ")]
        assert len(problems) == 1, self.output
        assert len(remedies) == 1, self.output
        assert code in problems[0]
        assert says in problems[0]
        assert remedy in remedies[0]
        assert lines.index(problems[0]) < lines.index(remedies[0])
        assert "Traceback" not in self.output
        assert self.code == exit_code, self.output


def run(
    *args: str,
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    command: Sequence[str] = POOLED_SERVE,
) -> Done:
    """The command in a process of its own, to its end."""
    done = subprocess.run(
        [*command, *args],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, LOADS_FOR_LONG.sub("", done.stderr))


class Here:
    """The command in this process, for what it decides before it looks at the project.

    That is a hundred times as fast. `folder` is its current directory.
    """

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(folder)
        # gunicorn's default is the current directory at the time of its import.
        monkeypatch.setattr(Chdir, "default", str(folder))
        monkeypatch.setattr(sys, "path", sys.path[:])
        # Other tests may have imported Django, which the command refuses before gevent has patched.
        for name in ("django.conf", "django.db"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(early._watch, "place", "")
        # Two files of one size, written in the same second, would have the same bytecode.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for name in set(os.environ) - set(environment()):
            monkeypatch.delenv(name)

    def conf(self, source: str) -> None:
        (self.folder / "gunicorn.conf.py").write_text(source)

    def run(self, *args: str) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["pooled-serve", *args])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return Done(code, out, err)
