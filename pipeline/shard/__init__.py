"""The parts of `personalize_shard`: loading, the stages of a worker, result rows, and the commit."""
