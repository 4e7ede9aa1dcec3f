"""What a project may do with the package's public names; test_packaging.py lets mypy look at it."""

import socket

from pooled_serve import __version__, pooling
from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import ConnectionPool


def connect() -> socket.socket:
    return socket.create_connection(("127.0.0.1", 3306))


pool = ConnectionPool(connect, size=1, max_outstanding=2, timeout=0.5)
connection: socket.socket = pool.acquire(timeout=1)
try:
    connection.sendall(b"x")
finally:
    pool.release(connection)
in_use: int = pool.stats()["in_use"]
pool.close()

pooling.set_pool_size(4, max_outstanding=10, timeout=60)
pooling.apply_patch()
problems: tuple[type[Exception], ...] = (PoolClosed, PoolTimeout)
version: str = __version__
