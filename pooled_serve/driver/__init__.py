"""Everything that speaks to MySQL: connecting, results, reset and replay, statements.

* connection.py: connecting, liveness, clean hand-back, and what is recorded to be replayed
* closing.py: how a connection ends, and who has ended it
* parameters.py: what DATABASES says in mysqlclient's words; option_files.py: my.cnf
* abandoned.py: ending what a server still does for a connection that is gone
* pipeline.py: several commands in one round trip
* reset.py: what a reset replays; login.py: what a login sets that a reset does not restore
* statements.py: what a statement leaves behind; questions.py: what it asks about earlier ones
* reads.py: whether a statement only reads
* results.py, columns.py and buffer.py: reading results
* error_codes.py: error codes, and what they mean here; error_classes.py: mysqlclient's classes
"""
