"""Run a program as ``__main__`` after what comes before it in a worker.

    PYTHON launch.py [--gevent] [--pool] PROGRAM [arguments]

The order is that of pooled-serve's worker: gevent patches the standard library, then the pool
patches Django, and only then anything of the project is imported.
"""

import os
import runpy
import sys

arguments = sys.argv[1:]
if "--gevent" in arguments:
    arguments.remove("--gevent")
    from gevent import monkey

    monkey.patch_all()

import pymysql  # noqa: E402

pymysql.install_as_MySQLdb()

if "--pool" in arguments:
    arguments.remove("--pool")
    from pooled_serve import pooling

    pooling.set_pool_size(4, max_outstanding=12)
    pooling.apply_patch()

sys.argv = arguments
sys.path.insert(0, os.path.dirname(arguments[0]))
runpy.run_path(arguments[0], run_name="__main__")
