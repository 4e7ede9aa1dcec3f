"""Logging that the project's LOGGING does not silence."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def loggers_stay_enabled() -> Iterator[None]:
    """Keeps the loggers of gunicorn and of the pool enabled while the body loads the project.

    By default, dictConfig() disables all existing loggers that LOGGING does not name.
    """
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        and name.partition(".")[0] in ("gunicorn", "pooled_serve")
        and not logger.disabled
    ]
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False
