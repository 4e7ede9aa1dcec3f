"""Where a request is made cheaper than gunicorn and PyMySQL make it, and how to do without.

Each saving has a name and a place of its own, where a comment says what it won. To see whether one
of them is to blame for something: ``POOLED_SERVE_WITHOUT=one-send,columns``. Imports nothing of
ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "POOLED_SERVE_WITHOUT"

NAMES = (
    "columns",  # mysql.py: columns described before are not taken apart again
    "date",  # response.py: the Date header is written once a second
    "direct-send",  # sending.py: what is small goes to the kernel without preparations
    "freeze",  # garbage.py: the collector does not visit the loaded project
    "one-send",  # response.py: headers travel with the first piece of the body
    "threshold",  # garbage.py: the collector looks less often at requests in flight
)


def off(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The names that a person switched off.

    :raises ValueError: there is no such saving.
    """
    names = environ.get(VARIABLE, "").replace(",", " ").split()
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: there is no {name!r}, only {', '.join(NAMES)}")
    return names


def on(name: str) -> bool:
    """Whether to save that."""
    return name not in off()
