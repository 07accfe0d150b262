"""Numbers with their nouns."""

from __future__ import annotations


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """ "1 shard", "3 shards"; `plural_noun` where an s is not enough, such as "1 child", "3 children"."""
    return f"{count} {noun if count == 1 else plural_noun or f'{noun}s'}"
