"""Numbers in words, for the sentences and pages that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pooled_serve.driver.error_codes import FULL

NONE = "–"
"""For what is not known."""


def count(number: float | None) -> str:
    """Returns a whole number with separators: 1,234."""
    return NONE if number is None else f"{number:,.0f}"


def rate(number: float | None) -> str:
    """Returns a number with a decimal if it is small: 3.5, 120."""
    if number is None or number >= 10 or number == int(number):
        return count(number)
    return f"{number:.1f}"


def percent(share: float | None) -> str:
    """Returns a share of 1 in per cent; what is not quite all or nothing does not look like it."""
    if share is None:
        return NONE
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def plural(number: float, singular: str, many: str = "") -> str:
    """Returns the number with its noun: 1 request, 2 requests."""
    return f"{count(number)} {singular if number == 1 else many or singular + 's'}"


def times(number: float) -> str:
    """Returns how often something was: once, 2 times."""
    return "once" if number == 1 else f"{count(number)} times"


def listed(words: list[str]) -> str:
    """Returns the words as a list in a sentence: a, b and c."""
    return ", ".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def duration(seconds: float | None) -> str:
    """Returns seconds in the unit that fits: 4.1 ms, 250 ms, 1.5 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return NONE
    if seconds == 0:
        return "0 s"
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return _parts(seconds, 60, "min", 1, "s")
    if seconds < 86_370:
        return _parts(seconds, 3600, "h", 60, "min")
    return _parts(seconds, 86_400, "d", 3600, "h")


def at_most(seconds: float) -> str:
    """Returns a bound: ≤ 250 ms, < 1 ms, ≤ 1 ms for that very bound."""
    if seconds == 0.001:
        return "≤ 1 ms"
    text = duration(seconds)
    return text if text.startswith("<") else f"≤ {text}"


def unusable(login_refused: float | None, stuck: float | None, error: float | None = None) -> str:
    """Returns what is the matter with a database that is not ``reachable``: for its heading on the
    page, and for ``/readyz``.

    :param error: the number of the last error of a connect, if there was one.
    """
    if login_refused:
        return "refuses the login"
    if stuck:
        return "does not answer"
    what = "server full" if error in FULL else "cannot be reached"
    return f"{what} (error {error:.0f})" if error else what


def taken_elsewhere(host: Mapping[str, Any] | None) -> str:
    """Returns how many of a host's connections are not of this instance's workers; empty if none
    is. After USR2 two instances share the bound, and each has a page of its own."""
    elsewhere = (host or {}).get("taken_elsewhere") or 0
    return f"{count(elsewhere)} of them by other processes, as after USR2" if elsewhere else ""


def _parts(seconds: float, large: int, its_name: str, small: int, name: str) -> str:
    whole, rest = divmod(round(seconds / small), large // small)
    return f"{whole} {its_name}" + f" {rest} {name}" * (rest > 0)


def span(seconds: float) -> str:
    """Returns how long something was watched, without decimals: 45 s, 12 min, 3 h 5 min, 24 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
