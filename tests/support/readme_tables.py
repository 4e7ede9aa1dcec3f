"""The tables of README.md that the code has all of: options, problem codes, mysqlclient's words.

    python tests/support/readme_tables.py

writes them anew, in its own checkout, and with any Python that has what the project needs;
tests/test_readme_tables.py fails while they are not what the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # not the package of another checkout, which the environment may have
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pooled_serve import cli, options, problems  # noqa: E402
from pooled_serve.driver import parameters  # noqa: E402
from support.package_map import PYTHON, rewrite  # noqa: E402

README = ROOT / "README.md"
WRITER = f"{PYTHON} tests/support/readme_tables.py"


def options_table() -> str:
    """Our own options, as --help has them."""
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


def words_table() -> str:
    """What may be in DATABASES."""
    rows = ["| in `DATABASES` | here |", "|---|---|"]
    for words, meaning in parameters.WORDS.items():
        rows.append(f"| `{'`, `'.join(words.split(', '))}` | {meaning} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "options": options_table,
    "problem codes": problems.table,
    "mysqlclient's words": words_table,
}


def written(table: str) -> str:
    """What README.md has of a table, which is found by its head."""
    head = table.partition("\n")[0]
    _, found, rest = README.read_text().partition(f"\n\n{head}\n")
    if not found:
        sys.exit(f"README.md has no table with the head {head}: write that line as it was")
    return head + "\n" + rest.partition("\n\n")[0]


def write() -> None:
    text = README.read_text()
    for make in TABLES.values():
        table = make()
        text = text.replace(written(table), table)
    rewrite(README, text)


if __name__ == "__main__":
    write()
