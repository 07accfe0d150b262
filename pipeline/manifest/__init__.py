"""A manifest's rows: read, checked, and every problem named with row, column, value and fix."""
