"""What a running instance shows of itself.

* scoreboard.py: the statistics of all workers, in shared memory
* listener.py: the status listener's routes; clients.py: its connections; page.html: its page
* prometheus.py: ``/metrics``
* pool_log.py: log lines about a pool
* reachability.py: whether a database can be reached, and the probe that finds out
* leaks.py: leases that last suspiciously long
"""
