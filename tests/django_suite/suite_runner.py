"""A test runner that writes down how each test ended, as one line of JSON."""

from __future__ import annotations

import faulthandler
import json
import os
import unittest
from typing import Any

import stalls
from django.test.runner import DiscoverRunner
from gevent import monkey

MAX_WAIT_SECONDS = 300
"""Seconds for one test. Then the stacks are printed, and the run ends."""

_record = open(os.environ["DJANGO_SUITE_RECORD"], "a", buffering=1)  # noqa: SIM115


class Result(unittest.TextTestResult):
    """unittest's, and a line for each outcome. A test with sub-tests may get several."""

    def startTest(self, test: Any) -> None:  # noqa: N802 - unittest's names, here and below
        faulthandler.dump_traceback_later(MAX_WAIT_SECONDS, exit=True)
        stalls.found.clear()
        super().startTest(test)

    def stopTest(self, test: Any) -> None:  # noqa: N802
        super().stopTest(test)
        if stalls.found:
            write(test, "hangs", stalls.found[0])
        faulthandler.cancel_dump_traceback_later()

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        super().addSuccess(test)
        write(test, "ok")

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        write(test, "expected failure")

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        write(test, "skipped", reason)

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        write(test, "failed", err[1])

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        write(test, "failed", err[1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            write(test, "failed", err[1])

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        write(test, "failed", "it was expected to fail")


def write(test: Any, outcome: str, why: object = "") -> None:
    text = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else str(why)
    # A sub-test counts for its test: its own name may hold the address of an object.
    name = test if isinstance(test, str) else getattr(test, "test_case", test).id()
    _record.write(json.dumps([name, outcome, text]) + "\n")


class Runner(DiscoverRunner):
    def get_resultclass(self) -> Any:
        return super().get_resultclass() or Result

    def run_tests(self, *args: Any, **kwargs: Any) -> int:
        if monkey.is_module_patched("threading"):
            stalls.watch()
        failures: int = super().run_tests(*args, **kwargs)
        write("the run to its end", "ok")  # a crash shows as the lack of it
        return failures
