"""How much of the tests is to run."""

import os

import pytest

TORTURE = bool(os.environ.get("TORTURE"))
"""Whether to run all of what the everyday run takes a sample of, as CI does."""

torture = pytest.mark.slow
"""Tests that take long, some of them minutes; without TORTURE=1, conftest.py skips them."""
