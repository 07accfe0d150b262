"""What a run does: fingerprints, the plan, its shards, and what they cost. Nothing is started here."""
