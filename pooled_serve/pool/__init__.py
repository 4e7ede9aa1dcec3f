"""A bounded, fair connection pool for gevent. Knows neither Django nor PyMySQL.

* pool.py: acquire, release, lease, reclaim: who gets a connection
* connecting.py: how connections begin, and what an outage means to waiters
* returning.py: how they come back
* retiring.py: drain, close, clear: how connections end
* base.py: a pool's parameters, its numbers, and its description in words
* entry.py: one unit of the cap, and its states
* waiters.py: the queue, and direct hand-off
* overload.py: which waiters are refused when requests arrive faster than connections come back
* outage.py: since when nobody answers, and for how long it is worth to wait
* backoff.py: when to try to connect again
* lease.py: a connection for a ``with`` block
* listener.py: the events that a pool announces
* metrics.py: counters, gauges and histograms, each declared once
"""

from pooled_serve.pool.base import DIRTY, FAILED_OVER, get_thread
from pooled_serve.pool.entry import Closable
from pooled_serve.pool.lease import Lease
from pooled_serve.pool.listener import PoolListener
from pooled_serve.pool.pool import PING_TIMEOUT_SECONDS, ConnectionPool

__all__ = [
    "DIRTY",
    "FAILED_OVER",
    "PING_TIMEOUT_SECONDS",
    "Closable",
    "ConnectionPool",
    "Lease",
    "PoolListener",
    "get_thread",
]
