"""What a running instance shows of itself.

* scoreboard.py: the statistics of all workers, in shared memory
* load.py: how busy each worker is; culprit.py: who blocks it; shortage.py: what this machine lacks
* routes.py: which route has held connections, and for how long; route_history.py: lately
* history.py: the last five minutes, in that memory, pool_history.py: those of one database;
  peaks.py: the peaks of a day
* figures.py: what the counters say about a stretch of time; episodes.py: what a trouble has cost
* findings.py: what is wrong now, first of all what busy.py says of workers, disruptions.py of
  databases that cannot be used, and views.py of views
* advice.py: what would fit; sentence.py, remedies.py, words.py: of what all sentences are made
* stats.py: ``/stats.json``, of all that; text.py: the page for terminals; advise.py: ``--advise``
* listener.py: the status listener's routes; clients.py: its connections; page.html: its page
* prometheus.py: ``/metrics``; instance_metrics.py: those of the numbers that are no pool's
* pool_log.py: log lines about a pool; hanging_log.py: about statements that hang; repeats.py: when
  the log says again what it has said
* reachability.py: whether a database can be reached and answers, and the probe that finds out
* traces.py: spans for OpenTelemetry
* leaks.py: leases that last suspiciously long
"""
