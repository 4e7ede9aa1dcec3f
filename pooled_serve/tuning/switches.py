"""Where a request is made cheaper than gunicorn and PyMySQL make it, and how to switch that off.

Each switch has a name and one place in the code, where a comment says what it saves. To see whether
one of them causes a problem: ``POOLED_SERVE_WITHOUT=one-send,results``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "POOLED_SERVE_WITHOUT"

NAMES = (
    "date",  # tuning/response.py: the Date header is written once a second
    "direct-receive",  # tuning/receive.py: an answer is waited for before it is asked for
    "direct-send",  # tuning/send.py: small data goes to the kernel without preparations
    "freeze",  # tuning/gc.py: the collector does not visit the loaded project
    "one-send",  # tuning/response.py: headers travel with the first piece of the body
    "results",  # driver/results.py: buffered results are read in bulk
    "threshold",  # tuning/gc.py: the collector looks less often at requests in flight
)


def off(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The names that ``POOLED_SERVE_WITHOUT`` switches off.

    :raises ValueError: there is no such switch.
    """
    names = environ.get(VARIABLE, "").replace(",", " ").split()
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: there is no {name!r}, only {', '.join(NAMES)}")
    return names


def on(name: str) -> bool:
    """Whether it is in use."""
    return name not in off()
