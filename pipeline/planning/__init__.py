"""Prepare and plan a run: models, fingerprints, shards and costs."""
