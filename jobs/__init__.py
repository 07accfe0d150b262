"""Running the pipeline on Ray, and the command line."""
