"""Serve a Django project on Gunicorn's gevent worker with its MySQL connections pooled."""

__version__ = "0.1.0"
