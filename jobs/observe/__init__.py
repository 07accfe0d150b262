"""What is told of a run while it goes on: progress display, metrics, log, webhook, signals."""
