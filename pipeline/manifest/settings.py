"""How large a manifest may be: every limit, its default and what it does."""

from __future__ import annotations

from pydantic import Field

from ...core.settings import Settings


class ManifestSettings(Settings):
    """How large a manifest may be. A small compressed file can hold what no memory does."""

    max_rows: int = Field(default=10_000_000, ge=1, description="a manifest with more rows is refused")
    max_row_bytes: int = Field(
        default=256 * 2**20,
        ge=1,
        description="a row that is larger once it is decoded, embedded images included, fails",
    )
    max_list_items: int = Field(
        default=10_000, ge=1, description="a row with a longer list of references, prompts, masks or metadata fails"
    )
    max_line_bytes: int = Field(default=16 * 2**20, ge=1, description="JSON lines: a longer line is refused")

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset(cls.model_fields)  # they decide what is accepted
