"""The run spec: every setting of a run, read from and written to YAML."""
