"""Sends itself a signal, named by its argument, while the callback of a weak reference runs. Prints
what was raised behind it."""

from __future__ import annotations

import os
import signal
import sys
import weakref

from pooled_serve.serve import signals


class Module:
    """Something that a weak reference can refer to."""


def go_on() -> None:
    print("went on")


signals.keep_what_handlers_raise()
signal.signal(signal.SIGTERM, signals.leave)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if run in the background

module = Module()
imported = weakref.ref(module, lambda _: os.kill(os.getpid(), int(sys.argv[1])))
try:
    del module
    go_on()
except BaseException as error:
    print(type(error).__name__.strip("_"), sys.getprofile())

other = Module()
failing = weakref.ref(other, lambda _: 1 / 0)
del other
