"""Optimizations of gunicorn, PyMySQL and Python, each with a switch."""
