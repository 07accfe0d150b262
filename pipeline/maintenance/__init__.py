"""Maintain a catalog: remove garbage, forget concepts, verify."""
