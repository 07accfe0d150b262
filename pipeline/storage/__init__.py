"""Bytes in and out of a disk or an object store: addresses, errors, retry, whole objects."""
