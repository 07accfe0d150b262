"""One shard's work: load, train, render and score in stages, and commit."""
