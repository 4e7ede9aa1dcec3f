"""Hypothesis makes up what happens to pools."""

from __future__ import annotations

import gevent
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from support.torture import TORTURE


def tell_stories(machine: type[RuleBasedStateMachine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who are killed in them are no news."""
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *args: None)
    run_state_machine_as_test(
        machine,
        settings=settings(
            # A story costs more than an example of another test; a quick run has few of both.
            max_examples=100 if TORTURE else min(30, settings().max_examples // 3),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
