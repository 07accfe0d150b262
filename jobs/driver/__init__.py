"""The driver of a run on Ray: shards in, workers that come and go, retries, splits, quarantine."""
