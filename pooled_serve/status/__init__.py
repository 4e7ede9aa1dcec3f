"""What a running instance shows of itself.

* scoreboard.py: the statistics of all workers, in shared memory
* routes.py: which route has held connections, and for how long
* history.py: the last five minutes, in that memory; peaks.py: the peaks of a day
* figures.py: what the counters say about a stretch of time
* findings.py: what is wrong now; disruptions.py: what keeps a database from being used
* advice.py: what would fit; sentence.py, remedies.py, words.py: of what all sentences are made
* stats.py: ``/stats.json``, of all that; text.py: the page for terminals; advise.py: ``--advise``
* listener.py: the status listener's routes; clients.py: its connections; page.html: its page
* prometheus.py: ``/metrics``; instance_metrics.py: those of the numbers that are no pool's
* pool_log.py: log lines about a pool
* reachability.py: whether a database can be reached and answers, and the probe that finds out
* traces.py: spans for OpenTelemetry
* leaks.py: leases that last suspiciously long
"""
