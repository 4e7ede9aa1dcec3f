"""Everything that speaks to MySQL: connecting, results, reset and replay, statements."""
