"""What a running instance tells: scoreboard of all workers, page, metrics, log lines."""
