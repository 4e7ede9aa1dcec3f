"""Optimizations of gunicorn, PyMySQL and Python, each with a switch.

* switches.py: the switches
* gc.py: the garbage collector; response.py and send.py: sending; receive.py: waiting for answers
"""
