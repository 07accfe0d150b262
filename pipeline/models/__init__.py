"""Base models and scorers: found by name, fetched once, digested, and described without torch."""
