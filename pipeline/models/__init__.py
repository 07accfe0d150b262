"""Base models and scorers: resolve their names, fetch them once, digest their files. Imports no torch."""
