"""A run's documents in its catalog: id, plan, state, log, summary, report."""
