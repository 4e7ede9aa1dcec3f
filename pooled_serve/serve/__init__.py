"""Gunicorn, embedded: application, settings and hooks, worker."""
