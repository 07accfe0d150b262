"""Reference images: fetched, bounded, digested and decoded."""
