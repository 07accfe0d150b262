"""All output of the commands: text made safe for a terminal, in whatever encoding, also when nobody reads it."""
