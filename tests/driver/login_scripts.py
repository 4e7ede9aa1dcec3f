"""What test_login.py runs in a process of its own."""

from __future__ import annotations

from support.inside import assert_sound, one, patch, pool, run


def use_a_connection() -> int:
    """How many attempts to connect have failed until it could be reset."""
    assert one("SELECT 1") == 1
    run("SET @x = 1")
    patch.end_request()
    assert one("SELECT @x") is None
    assert_sound()
    return int(pool().stats()["connect_errors_total"])
