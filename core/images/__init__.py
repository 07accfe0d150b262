"""Image files from outside: the one decoder, and names for files that are none."""
