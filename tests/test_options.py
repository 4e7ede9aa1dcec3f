"""One table of options, and where their values come from."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooled_serve import options
from pooled_serve.errors import StartupError
from pooled_serve.options import OPTIONS, AliasSize, Option, PoolOptions
from pooled_serve.pool_plan import PoolPlan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport
from pooled_serve.serve import app as server
from pooled_serve.serve.reloads import Reloads
from support.command import Here
from support.option_values import good_values
from support.servers import ROOT

VALUED = [option for option in OPTIONS if not option.is_flag]
(STRICT,) = (option for option in OPTIONS if option.is_flag)


def value_of(option: Option, *arguments: str) -> object:
    return getattr(server.Application([*arguments, "app"]).cfg, option.setting)


@pytest.mark.parametrize("option", VALUED, ids=lambda option: option.flag)
def test_the_stronger_source_wins(
    here: Here, monkeypatch: pytest.MonkeyPatch, option: Option
) -> None:
    (one, first), (two, second) = good_values(option)

    assert value_of(option) == option.default
    here.conf(f"{option.setting} = {one!r}")
    assert value_of(option) == first
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"{option.flag} {two}")
    assert value_of(option) == second
    monkeypatch.setenv(option.variable, one)
    # the last item for an alias counts, so that the stronger source may add to the weaker
    assert last_item(value_of(option)) == last_item(first)
    assert value_of(option, option.flag, two) == second


def last_item(value: Any) -> object:
    return value[-1] if isinstance(value, tuple) else value


def test_a_flag_can_be_undone(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert value_of(STRICT) is False
    here.conf("pool_strict = True")
    assert value_of(STRICT) is True
    monkeypatch.setenv(STRICT.variable, "0")
    assert value_of(STRICT) is False
    assert value_of(STRICT, "--strict") is True
    monkeypatch.delenv(STRICT.variable)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--no-strict")
    assert value_of(STRICT) is False
    monkeypatch.setenv(STRICT.variable, "yes")
    assert value_of(STRICT) is True


def test_the_age_comes_from_the_settings_only_if_nobody_else_says(here: Here) -> None:
    def age(*arguments: str, conn_max_age: float | None = 600) -> float:
        application = server.Application([*arguments, "app"])
        databases = (DatabaseReport("default", True, "MySQL", conn_max_age=conn_max_age),)
        application._report = ProjectReport(databases=databases)
        application._make_plan()
        return application.plan.pools["default"].max_age

    assert age(conn_max_age=0) == 60
    assert age(conn_max_age=None) == 60
    assert age() == 600
    here.conf("conn_max_age = 30")
    assert age() == 30
    assert age("--conn-max-age", "none") == math.inf


def test_repeated_and_listed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    three = (AliasSize("a", 1), AliasSize("b", 2, 3), AliasSize("c", 4, math.inf))
    option = options.BY_SETTING["pool_aliases"]
    assert value_of(option, "--pool", "a:1", "--pool=b:2:3", "--pool", "c:4:unlimited") == three
    here.conf("pool_aliases = ['a:1', 'b:2:3', 'c:4:unlimited']")
    assert value_of(option) == three
    monkeypatch.setenv(option.variable, "a:1, b:2:3, c:4:unlimited")
    assert value_of(option) == three


def test_real_values_in_the_file(here: Here) -> None:
    here.conf(
        "wsgi_app = 'mysite.wsgi'\n"
        "pool_size = 7\n"
        "max_outstanding = 9\n"
        "pool_timeout = 0.5\n"
        "conn_max_age = float('inf')\n"
        "pool_replicas = 2\n"
        "pool_strict = True\n"
        "settings = 'left alone'\n"  # names without the prefix stay the user's own
        "status = 'left alone'\n"
    )
    application = server.Application([])
    assert application.app_uri == "mysite.wsgi"
    found = application.cfg.pool_options()
    assert (found.size, found.cap, found.timeout, found.max_age) == (7, 9, 0.5, math.inf)
    assert (found.replicas, found.strict) == (2, True)


def test_what_a_worker_sees_when_nobody_said_anything(here: Here) -> None:
    cfg = server.Application(["app"]).cfg
    assert cfg.pool_size == 4
    assert cfg.pool_timeout == 10
    assert cfg.pool_aliases == ()
    assert cfg.pool_replicas == 1
    assert cfg.pool_strict is False
    assert cfg.max_outstanding is None  # three times the size of each pool
    assert cfg.conn_max_age is None  # as the settings say
    assert cfg.pool_options() == options.PoolOptions()


def test_the_command_line_stays_as_it_was_typed(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """USR2 starts the new master from it."""
    monkeypatch.setattr(sys, "argv", typed := ["pooled-serve", "app", "--no-such"])
    server.Application(["app", "--pool-size=5"])
    assert sys.argv is typed


# --- HUP ---------------------------------------------------------------------------------------


def started(*arguments: str) -> server.Application:
    """With what a master makes before it forks, so that it can be reloaded."""
    application = server.Application(arguments)
    application.reloads = Reloads(None, ())
    return application


def test_reload_takes_up_what_changed(here: Here) -> None:
    here.conf("pool_size = 5\nworkers = 2")
    application = started("app", "--pool-timeout", "3")
    here.conf("pool_size = 6\nworkers = 3\npool_timeout = 9")
    application.reload()
    assert application.cfg.pool_size == 6
    assert application.plan.options.size == 6
    assert application.cfg.workers == 3
    assert application.cfg.pool_timeout == 3  # the command line goes on ranking above


@pytest.mark.parametrize(
    "source",
    [
        "wsgi_app = 'app'\npool_size = 0",
        "wsgi_app = 'app'\nworkers = 'x'",
        "wsgi_app = 'app'\nworker_class = 'sync'",
        "wsgi_app = 'app'\nbind = 'host:port'",
        "syntax error",
        "pool_size = 6",  # and no application any more
    ],
)
def test_reload_keeps_the_old_configuration_if_the_new_one_is_no_good(
    here: Here, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    here.conf("wsgi_app = 'app'\npool_size = 5")
    application = started()
    before = application.cfg, application.plan
    here.conf(source)
    application.reload()
    assert (application.cfg, application.plan) == before
    assert application.app_uri == "app"
    (record,) = caplog.records
    assert (
        "the old options stay (the workers are replaced, and load the project anew): PS40"
        in record.message
    )


def test_reload_refuses_a_contradiction(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    here.conf("pool_size = 5")
    application = started("app")
    application._report = ProjectReport(databases=(DatabaseReport("default", True, "MySQL"),))
    here.conf("pool_size = 5\nmax_outstanding = 4")
    application.reload()
    assert application.cfg.max_outstanding is None
    assert "PS204" in caplog.text


# --- Values ------------------------------------------------------------------------------------

PARSERS = [option.parse for option in OPTIONS]
anything: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["unlimited", "none", "1", " 2 ", "3.5", "1e400", "nan", "a:1", "a:1:2", "٣"])
    | st.from_regex(r"[a-z]{0,2}(:[0-9]{1,2}){0,3}(,[a-z]:[1-9])?", fullmatch=True)
    | st.binary()
    | st.just(10**400)
)
anything = anything | st.lists(anything, max_size=3) | st.tuples(anything)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
@given(value=anything)
def test_parsers_raise_nothing_but_value_errors(option: Option, value: object) -> None:
    refused = ""
    try:
        parsed = option.parse(value)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("must be ")
        assert "\n" not in refused
    else:
        assert option.parse(parsed) == parsed


@given(st.integers(max_value=0) | st.floats(max_value=0) | st.just("0"))
def test_nothing_is_zero(value: object) -> None:
    for parse in (options.count, options.limit, options.seconds, options.seconds_or_none):
        with pytest.raises(ValueError, match="must be"):
            parse(value)


@given(st.integers(min_value=1, max_value=10**12))
def test_numbers_are_what_they_look_like(number: int) -> None:
    parsers: list[Callable[[object], float]] = [
        options.count,
        options.limit,
        options.seconds,
        options.seconds_or_none,
    ]
    for parse in parsers:
        assert parse(number) == parse(str(number)) == number


@given(st.dictionaries(st.sampled_from([o.variable for o in OPTIONS]), st.text()))
def test_environment(environ: dict[str, str]) -> None:
    try:
        found = options.from_environment(environ)
        named = [option.variable for option, _ in found]
    except ValueError as error:
        named = [str(error).partition(": ")[0]]
    assert set(named) <= set(environ)


def test_environment_names_follow_the_flags() -> None:
    assert [option.variable for option in OPTIONS][:2] == [
        "POOLED_SERVE_POOL_SIZE",
        "POOLED_SERVE_MAX_OUTSTANDING",
    ]
    for option in OPTIONS:
        assert option.variable == "POOLED_SERVE_" + option.flag[2:].upper().replace("-", "_")


@pytest.mark.parametrize("table", [PoolOptions, PoolPlan])
def test_nothing_is_asked_for_in_vain(table: type[PoolOptions] | type[PoolPlan]) -> None:
    """Each option, and each number of a pool, is read where it takes effect."""
    own = {"options.py", "pool_plan.py"}
    package = (ROOT / "pooled_serve").rglob("*.py")
    code = "\n".join(path.read_text() for path in package if path.name not in own)
    for field in dataclasses.fields(table):
        option = field.metadata.get("option")
        # A number of a plan has the name of the option that it is made from.
        read = rf"(?<!options)\.{field.name}\b"
        if option:
            read = rf"\.{field.name}\b|\b{option.setting}\b"
        if not re.search(read, code):
            way = "pools get it by preflight/plan.py, a PoolPlan, and backend/database.py"
            pytest.fail(f"nothing reads {table.__name__}.{field.name}: {way}", pytrace=False)


def test_each_number_of_a_pool_gets_from_the_options_to_the_pool() -> None:
    """Each step has the same names, so one that is left out would not be missed."""
    plan, database = (
        (ROOT / "pooled_serve" / name).read_text()
        for name in ("preflight/plan.py", "backend/database.py")
    )
    own = {field.name for field in dataclasses.fields(PoolOptions)}
    for field in dataclasses.fields(PoolPlan):
        name = field.name
        if name in own and not re.search(rf"\boptions\.{name}\b", plan):
            pytest.fail(f"preflight/plan.py does not read options.{name}", pytrace=False)
        if name in own - NOT_OF_A_POOL and not re.search(rf"plan\.{name}\b", database):
            pytest.fail(f"backend/database.py does not read plan.{name}", pytrace=False)


NOT_OF_A_POOL = {"per_host"}
"""That of all workers, whose tokens they share."""


def test_the_changes_name_each_option() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    for option in OPTIONS:
        if not re.search(rf"{option.flag}\b", changes):
            pytest.fail(f"CHANGELOG.md does not name {option.flag}: add a line", pytrace=False)


def test_refusals_name_the_variable(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLED_SERVE_POOL", "default")
    with pytest.raises(StartupError, match="PS401 POOLED_SERVE_POOL: must be ALIAS:SIZE"):
        server.Application(["app"])
