"""What the tests share: database servers, a proxy in front of them, a server process, a load."""

import os

import pytest

TORTURE = bool(os.environ.get("TORTURE"))
"""Whether to run all of what the everyday run takes a sample of, as CI does."""

torture = pytest.mark.slow
"""Tests that take minutes; without TORTURE=1, conftest.py skips them."""
