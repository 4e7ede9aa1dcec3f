"""The Django side: the patch, one pooled database per alias, leases, the 503.

* patch.py: the functions of Django that are replaced, and what the worker calls
* wrappers.py: Django's connection wrappers, made to lease
* registry.py: the pooled databases of this process; database.py: one of them
* lease.py: the DB-API connection of a wrapper; cursors.py and direct.py: other ways to reach it
* transactions.py: how a transaction of a session starts
* instrumented.py: the same for OpenTelemetry's instrumentation of PyMySQL
* again.py: when a statement whose connection is dead runs on a fresh one
* answers.py: what a session is answered that asks about an earlier statement
* scope.py: the request of a greenlet, and how long its leases last
* routes.py: for which route a lease is counted; urls.py: whether a view can be found again
* client_check.py: requests whose clients have hung up
* unavailable.py: the 503; rehearsal.py: what an error imports, imported before
"""
