"""What a run shows while it goes on: progress display, metrics, log, webhook, and how it is interrupted by signals."""
