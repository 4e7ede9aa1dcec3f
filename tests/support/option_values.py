"""For each pool option that takes a value two good ones, and bad ones for all of them."""

from __future__ import annotations

import math
from typing import TypeVar

import pytest

from pooled_serve.options import AliasSize, Option

T = TypeVar("T")

# Two texts for each option, and what they mean.
GOOD_VALUES: dict[str, tuple[tuple[str, object], ...]] = {
    "pool_size": (("5", 5), ("6", 6)),
    "max_outstanding": (("50", 50), ("unlimited", math.inf)),
    "pool_timeout": (("2.5", 2.5), ("7", 7.0)),
    "conn_max_age": (("20", 20.0), ("none", math.inf)),
    "pool_mode": (("request", "request"), ("transaction", "transaction")),
    "pool_reset": (("rollback", "rollback"), ("always", "always")),
    "pool_overload": (("wait", "wait"), ("shed", "shed")),
    "pool_aliases": (("a:5", (AliasSize("a", 5),)), ("a:5:9", (AliasSize("a", 5, 9),))),
    "pool_max_per_host": (("12", 12), ("1024", 1024)),
    "pool_client_check": (("2.5", 2.5), ("7", 7.0)),
    "pool_replicas": (("2", 2), ("3", 3)),
    "pool_leak_threshold": (("2.5", 2.5), ("7", 7.0)),
    "pool_status": (("[::1]:8001", "[::1]:8001"), ("unix:/run/s", "unix:/run/s")),
}

# What is refused.
BAD_VALUES: dict[str, tuple[str, ...]] = {
    "pool_size": ("0", "-1", "4.5", "many", ""),
    "max_outstanding": ("0", "-1", "none", "1e3"),
    "pool_timeout": ("0", "-1", "soon", "inf", "nan"),
    "conn_max_age": ("0", "-0.5", "never", "inf", "nan"),
    "pool_mode": ("session", "statement"),
    "pool_overload": ("never", "0"),
    "pool_reset": ("never",),
    "pool_aliases": ("replica", "replica:0", "replica:x", ":4", "replica:4:0", "a:1:2:3"),
    "pool_max_per_host": ("0", "-1", "unlimited", "1025"),
    "pool_client_check": ("0", "-1", "never"),
    "pool_replicas": ("0", "two"),
    "pool_leak_threshold": ("0", "-1", "long"),
    "pool_status": (
        *("9100", "here", "localhost:", "localhost:x", "localhost:0", "unix:", ":99999"),
        *("::1:8001", "::1", "[::1:8001", "[::1]x:8001", "localhost:80:81"),
    ),
    "pool_strict": ("maybe",),
}


def good_values(option: Option) -> tuple[tuple[str, object], ...]:
    """Two texts, and what they mean."""
    return _known("GOOD_VALUES", "two texts, and what they mean", GOOD_VALUES, option)


def bad_values(option: Option) -> tuple[str, ...]:
    """Texts that are refused."""
    return _known("BAD_VALUES", "texts that it refuses", BAD_VALUES, option)


def _known(name: str, what: str, table: dict[str, T], option: Option) -> T:
    if option.setting not in table:
        where = f"{name} in tests/support/option_values.py"
        pytest.fail(f"{where} has nothing for {option.setting}: add {what}", pytrace=False)
    return table[option.setting]
