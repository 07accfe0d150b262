"""A catalog's upkeep: garbage collection, forgetting concepts, verification."""
