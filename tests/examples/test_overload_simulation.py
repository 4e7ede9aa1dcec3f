"""examples/benchmark/overload.py prints what is quoted of it, and nobody is refused needlessly."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.serve import environment
from support.servers import ROOT

BENCHMARK = ROOT / "examples" / "benchmark"
sys.path.append(str(BENCHMARK))

import overload  # noqa: E402

SECONDS = 40.0


@pytest.mark.parametrize("times", [1.2, 2, 5])
def test_nearly_all_of_the_capacity_is_answered_in_time(times: float) -> None:
    def in_time(make_rule: type | None) -> float:
        # At 1.2 times the capacity it takes half a minute until the first has waited for 5 s.
        rate = times * overload.CAPACITY
        outcome = overload.simulate(rate=rate, seconds=60.0, make_rule=make_rule)
        return outcome.in_time(1.0, 40.0, 60.0)

    assert in_time(overload.rule.Overload) >= 0.95 * overload.CAPACITY
    assert in_time(None) < 0.1 * overload.CAPACITY


@pytest.mark.parametrize("case", overload.PATIENT_CASES)
def test_nobody_is_refused_where_patience_would_do(case: str) -> None:
    what = overload.PATIENT_CASES[case]
    outcome = overload.simulate(**what, make_rule=overload.rule.Overload, seconds=SECONDS)
    assert (outcome.refused, outcome.timed_out) == (0, 0)
    assert outcome.served


def test_a_stall_would_be_taken_for_overload_if_it_counted() -> None:
    stall = {"rate": 100, "stall": (30.0, 36.0), "make_rule": overload.rule.Overload}
    with overload.constants(STALL=1.0):
        assert overload.simulate(**stall, seconds=SECONDS).refused > 100


def test_its_numbers_are_those_that_are_quoted() -> None:
    printed = subprocess.run(
        [sys.executable, "-I", BENCHMARK / "overload.py"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout
    table = printed.partition("| where patience")[0]
    found = re.findall(r"^\| (\d+)/s \| ([^|]+) \| [^|]+ \| ([^|]+) \|", table, re.M)
    arrivals, fifo, pool = ([*column] for column in zip(*found, strict=True))
    assert all(len(set(numbers.split(" / "))) == 1 for numbers in pool)
    shown = (BENCHMARK / "README.md").read_text()
    for numbers in (arrivals, fifo, [numbers.split(" / ")[0] for numbers in pool]):
        assert f" | {' | '.join(numbers)} |" in shown
    twice = arrivals.index(f"{2 * overload.CAPACITY:.0f}")
    assert fifo[twice].startswith("0 / ")
    served = f"{pool[twice].split(' / ')[0]} of {overload.CAPACITY:.0f} possible answers"
    assert served in " ".join((ROOT / "README.md").read_text().split())
