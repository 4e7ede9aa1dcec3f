"""The tables of README.md that the code has all of: options, problem codes, mysqlclient's words.

    python tests/support/readme_tables.py

writes them anew, in the environment with the package; tests/test_readme_tables.py fails while they
are not what the code says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from pooled_serve import cli, options, problems
from pooled_serve.driver import parameters

README = Path(__file__).parents[2] / "README.md"
WRITER = "python tests/support/readme_tables.py"


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
    assert found, f"README.md has no table with the head {head}"
    return head + "\n" + rest.partition("\n\n")[0]


def write() -> None:
    for make in TABLES.values():
        table = make()
        README.write_text(README.read_text().replace(written(table), table))


if __name__ == "__main__":
    write()
