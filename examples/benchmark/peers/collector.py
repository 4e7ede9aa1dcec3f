"""Gunicorn's settings for switches.py: a worker says at its end what collecting garbage cost."""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

WORD = "collector: "

_spent = _longest = _began = _since = 0.0  # seconds of CPU


def post_worker_init(worker: Any) -> None:
    """The project is loaded."""
    global _since
    gc.callbacks.append(_note)
    _since = time.process_time()


def worker_exit(server: Any, worker: Any) -> None:
    """All requests have been served."""
    share = _spent / (time.process_time() - _since)
    print(WORD + json.dumps([share, _longest * 1e3]), file=sys.stderr, flush=True)


def _note(phase: str, info: dict[str, int]) -> None:
    global _spent, _longest, _began
    if phase == "start":
        _began = time.process_time()
        return
    took = time.process_time() - _began
    _spent += took
    _longest = max(_longest, took)
