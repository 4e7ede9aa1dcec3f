"""How much memory something keeps."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable


def most_held(steps: Iterable[object]) -> int:
    """How many bytes of this process are allocated, at most, after one of these steps, and were
    not before the first."""
    gc.collect()
    tracemalloc.start()
    try:
        return max(tracemalloc.get_traced_memory()[0] for _ in steps)
    finally:
        tracemalloc.stop()
