"""What the tests share: database servers, a proxy in front of them, a server process, a load."""

import os

import pytest

TORTURE = bool(os.environ.get("TORTURE"))
"""Whether to run all of what the everyday run takes a sample of, as CI does."""

torture = pytest.mark.skipif(not TORTURE, reason="takes minutes; set TORTURE=1")
