"""Read and check manifests; problems name row, column, value and fix."""
