"""The tables of README.md and its neighbours have all that the code has. What they lack is named,
with the place where it goes."""

from __future__ import annotations

import re

import pytest

from pooled_serve import problems
from pooled_serve.driver import parameters
from pooled_serve.pool import metrics
from pooled_serve.pool.metric import Kind
from pooled_serve.pool.metrics import PIN_REASONS
from pooled_serve.status import instance_metrics
from pooled_serve.status.pool_log import PRESSURES
from support import readme_tables
from support.servers import ROOT
from support.text import same_lines, same_names

README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "examples" / "deploy" / "README.md").read_text()


@pytest.mark.parametrize("name", readme_tables.TABLES)
def test_a_table_is_what_the_code_says(name: str) -> None:
    table = readme_tables.TABLES[name]()
    what = f"README.md's table of {name}"
    same_lines(readme_tables.written(table), table, what, readme_tables.WRITER)


def codes_used() -> set[str]:
    """The problem codes that modules of the package report."""
    modules = [path for path in (ROOT / "pooled_serve").rglob("*.py") if path.stem != "problems"]
    return {code for module in modules for code in re.findall(r'"(PS\d{3})\b', module.read_text())}


def test_each_problem_code_is_explained() -> None:
    codes = [problem.code for problem in problems.PROBLEMS]
    same_names(
        codes,
        codes_used(),
        lacks="PROBLEMS in pooled_serve/problems.py has no {}: add a Problem for it",
        surplus="PROBLEMS in pooled_serve/problems.py has {}, which nothing reports, or twice",
    )
    assert codes == sorted(codes), "PROBLEMS is in the order of the codes"


def test_each_problem_code_has_a_row() -> None:
    same_names(
        " ".join(problems.GROUPS).split(),
        codes_used(),
        lacks="{} is in no row of GROUPS in pooled_serve/problems.py: add it to one, or a row",
        surplus="GROUPS in pooled_serve/problems.py has {}, which nothing reports, or twice",
    )
    assert list(problems.GROUPS) == sorted(problems.GROUPS), "GROUPS is in the order of its first"


def test_each_problem_code_has_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    untested = sorted(code for code in codes_used() if code not in tests)
    assert not untested, f"no test provokes {untested[0]}: add a case, as tests/preflight/ has them"


def test_mysqlclients_socket_is_where_the_code_looks() -> None:
    for path in (*parameters.SOCKETS, parameters.SOCKET_VARIABLE):
        assert f"`{path}`" in README, f"README.md does not say that {path} is looked at"


def rows_of_table(document: str, heading: str) -> list[list[str]]:
    """The cells of a table, but for its head, which contains this text."""
    assert heading in document, f"there is no table with the head {heading}"
    table = document[document.index(heading) :].partition("\n\n")[0]
    return [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]


def test_what_pins_a_lease_is_what_the_code_says() -> None:
    rows = rows_of_table(RECIPES, "what pins a connection, with its *reason* in `pinned_total`")
    told = [reason for _, what in rows for reason in re.findall(r"\(\*([^*]+)\*\)", what)]
    where = "examples/deploy/README.md's table of what pins a connection"
    same_names(
        told,
        PIN_REASONS,
        lacks=f"{where} lacks (*{{}}*): add it, with the statements that pin for this reason",
        surplus=f"{where} has (*{{}}*), which PIN_REASONS in pool/metrics.py has not, or twice",
    )


def test_each_number_of_a_pool_is_explained_with_what_to_do() -> None:
    rows = rows_of_table(README, "| number, and what it means | what to do when it rises |")
    pools = ["budget", *(metric.key for metric in metrics.METRICS)]
    pools += [key for _, key, _ in instance_metrics.POOL_METRICS]
    hosts = [*(key for _, key, _ in instance_metrics.HOST_METRICS), "hosts"]
    routes = [*(key for _, key, _ in instance_metrics.ROUTE_METRICS), "routes"]
    workers = [*(key for _, key, _ in instance_metrics.WORKER_METRICS), "workers", "cpus"]
    workers += [
        "worker_deaths_total",
        "worker_death_ago_seconds",
        "reload_problem",
        "reload_refused_ago_seconds",
        "blocked_in",
        "blocked_in_log",
        "urls_error",
    ]
    same_names(
        [key for meaning, _ in rows for key in re.findall(r"`([a-z_]+)`", meaning)],
        [*pools, *hosts, *routes, *workers],
        lacks="README.md explains no `{}`: add it to a row of the table of numbers under Watching",
        surplus="README.md explains `{}`, which is in none of pool/metrics.py's METRICS and "
        "status/instance_metrics.py's, or explains it twice",
    )
    for meaning, remedy in rows:
        assert remedy.strip(), f"README.md does not say what to do: {meaning}"


def test_the_changes_name_each_number() -> None:
    """Dashboards and alerts are made of these names."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    keys = [metric.key for metric in metrics.METRICS]
    for of_others in ("INSTANCE", "POOL", "WORKER", "HOST", "ROUTE"):
        keys += [key for _, key, _ in getattr(instance_metrics, f"{of_others}_METRICS")]
    for key in keys:
        if f"`{key}`" not in changes:
            pytest.fail(
                f"CHANGELOG.md does not name `{key}`: add it to the list of numbers", pytrace=False
            )


def test_what_the_log_calls_a_pool_is_explained() -> None:
    chapter = RECIPES.partition("## What the log says")[2]
    told = set(re.findall(r"^- \*\*(.*?):\*\*", chapter, re.M))
    where = "examples/deploy/README.md, under What the log says,"
    lacking = set(PRESSURES) - told
    assert not lacking, f"{where} lacks an item **{lacking.pop()}:** for the log's word"


def test_each_reason_of_a_close_is_explained_with_what_to_do() -> None:
    rows = rows_of_table(README, "| reason in `closed_total` | what to do if there are many |")
    same_names(
        [reason for why, _ in rows for reason in re.findall(r"`([a-z ]+)`", why)],
        {*metrics.CLOSE_REASONS} - {"other"},
        lacks="README.md explains no `{}`: add it to a row of the table of reasons under Watching",
        surplus="README.md explains the reason `{}`, which CLOSE_REASONS in pool/metrics.py has "
        "not, or explains it twice",
    )
    for why, remedy in rows:
        assert remedy.strip(), f"README.md does not say what to do: {why}"


# --- The page's words --------------------------------------------------------------------------

PAGE = (ROOT / "pooled_serve" / "status" / "page.html").read_text()
TOTALS = PAGE.partition("function totals(")[2].partition("\n}\n")[0]
SHOWN = dict(re.findall(r'"([a-z0-9 ]+)", pool\.(\w+)', TOTALS))
"""The page's counters: word -> key in /stats.json."""
TERMS = re.findall(r'^  "([a-z0-9 ]+)": "', PAGE.partition("const TERMS = {")[2], re.M)
NOT_SHOWN = {"timeouts_total"}
"""Counters that the page does not count since the start: it has **refused**, of ten seconds."""


def test_the_page_shows_each_counter() -> None:
    counters = {metric.key for metric in metrics.METRICS if metric.kind is Kind.COUNTER}
    same_names(
        SHOWN.values(),
        counters - NOT_SHOWN,
        lacks="totals() in status/page.html has no {}: add it with a word, or to NOT_SHOWN here",
        surplus="totals() in status/page.html has {}, which is no counter, or is in NOT_SHOWN",
    )


def test_the_page_explains_its_words() -> None:
    reasons = {*metrics.CLOSE_REASONS} - {"other", "closed"}
    lacking = sorted({*SHOWN, *reasons} - {*TERMS})
    assert not lacking, f"TERMS in status/page.html has no {lacking[0]!r}: say there what it is"


def test_the_pages_words_are_explained_with_the_keys_of_their_numbers() -> None:
    rows = rows_of_table(README, "| on the page | words |")
    reasons = {*metrics.CLOSE_REASONS} - {"closed"}
    same_names(
        [word for _, words in rows for word in re.findall(r"\*\*([a-z0-9 ]+)\*\*", words)],
        {*TERMS} - reasons,
        lacks="README.md explains no **{}**: add it to the table of words under Watching",
        surplus="README.md explains **{}**, which TERMS in status/page.html has not",
    )
    words = " ".join(words for _, words in rows)
    same_names(
        [f"**{word}** `{key}`" for word, key in re.findall(r"\*\*([a-z0-9 ]+)\*\* `(\w+)`", words)],
        [f"**{word}** `{key}`" for word, key in SHOWN.items()],
        lacks="README.md's table of the page's words has no {}",
        surplus="README.md's table of the page's words has {}, and status/page.html not",
    )
