"""The weights of a model's parts: their files, and whether they fit. Independent of the rest of `core`."""
