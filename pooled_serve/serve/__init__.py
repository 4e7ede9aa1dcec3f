"""Gunicorn, embedded: application, settings and hooks, worker.

* app.py: the application, with the preflight before the start
* config.py: settings and Gunicorn's hooks
* worker.py: the worker; signals.py: what ends it; early.py: Django that is loaded before the patch
* accept.py, balance.py, turns.py: which client is served next, and by which worker
* addresses.py: where it listens; loggers.py: logging that LOGGING does not silence
* reloads.py: what comes of a HUP
* names.py: the option, variable or setting that was meant; values.py: what it takes; written.py:
  where it was written; conf_file.py: a file of them that cannot be used
"""
