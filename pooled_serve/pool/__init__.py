"""A bounded, fair connection pool for gevent. Knows neither Django nor PyMySQL.

Anything with a ``close()`` can be pooled among greenlets::

    >>> import gevent
    >>> from pooled_serve.pool import ConnectionPool
    >>> class Connection:
    ...     def close(self):
    ...         print("closed")
    >>> pool = ConnectionPool(Connection, size=1, max_outstanding=2, timeout=10)

Six users share two connections. When nobody waits any more, one is kept and the other closed::

    >>> def work():
    ...     with pool.lease():
    ...         gevent.sleep(0.02)
    >>> finished = gevent.joinall([gevent.spawn(work) for _ in range(6)])
    closed
    >>> print(pool.stats()["opened_total"], "opened for", pool.stats()["acquired_total"], "uses")
    2 opened for 6 uses

A third user waits, and gets an error that says why it waited in vain::

    >>> with pool.lease() as first, pool.lease() as second:
    ...     pool.acquire(timeout=0.5)
    Traceback (most recent call last):
    ...
    pooled_serve.errors.PoolTimeout: pool 'pool': no connection within 0.5s (2 in use, 0 idle,
    1 waiting, cap 2, longest held ...s)
    >>> pool.close()
    closed
    closed

The modules:

* pool.py: acquire, release, lease, reclaim: who gets a connection
* connecting.py: how connections begin, and what an outage means to waiters
* asked.py: for how long a server was asked in vain; silence.py: for how long statements are
* returning.py: how they come back
* sharing.py: the right to open a connection, and how it is given up for another worker
* tokens.py: which worker of a host gets one next
* host.py: the bound of a host, in memory and locks that its processes share
* area.py: the tokens of one database in there
* retiring.py: drain, close, clear: how connections end
* base.py: a pool's parameters, its numbers, and its description in words
* entry.py: one unit of the cap, and its states
* waiters.py: the queue, and direct hand-off
* overload.py: which waiters are refused when requests arrive faster than connections come back
* outage.py: since when nobody answers, and for how long it is worth to wait
* backoff.py: when to try to connect again
* lease.py: a connection for a ``with`` block
* listener.py: the events that a pool announces
* metrics.py: counters, gauges and histograms, each declared once; metric.py: what each is
"""

from pooled_serve.pool.base import DIRTY, FAILED_OVER, all_pools, get_thread, set_loop
from pooled_serve.pool.entry import Closable
from pooled_serve.pool.lease import Lease
from pooled_serve.pool.listener import PoolListener
from pooled_serve.pool.pool import PING_TIMEOUT_SECONDS, ConnectionPool
from pooled_serve.pool.silence import LOST

__all__ = [
    "DIRTY",
    "FAILED_OVER",
    "LOST",
    "PING_TIMEOUT_SECONDS",
    "Closable",
    "ConnectionPool",
    "Lease",
    "PoolListener",
    "all_pools",
    "get_thread",
    "set_loop",
]
