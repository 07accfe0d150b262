"""The catalog's format and how it is read: paths, lease, schemas, commit records, index, data files."""
