"""Which reference images are accepted and how they are read: every setting, its default and what it does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ...core.settings import Settings


class ReferenceSettings(Settings):
    """Which reference images are accepted, and how they are read."""

    max_bytes: int = Field(default=32 * 2**20, ge=1, description="a larger image file is refused")
    # Pillow itself warns from 89 million pixels on and refuses from twice that
    max_pixels: int = Field(
        default=64_000_000, ge=1, le=89_000_000, description="a larger image is refused by its header, unread"
    )
    min_side: int = Field(default=32, ge=1, description="an image with a shorter side has too little to learn from")
    max_aspect_ratio: float = Field(
        default=8, ge=1, description="a longer strip is refused: cropping it would lose most of the picture"
    )
    matte_color: str = Field(
        default="white", description="what shows through transparent pixels: a colour name or '#rrggbb'"
    )
    truncated: Literal["fail", "accept"] = Field(
        default="fail",
        description="a JPEG that ends before its end marker; accept: it is read, and what is missing of it is grey",
    )
    allowed_schemes: tuple[str, ...] = Field(
        default=("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https"),
        description="where references may be fetched from",
    )
    digest: Literal["auto", "content", "stat"] = Field(
        default="auto",
        description="how a changed image is noticed; content: every byte is read; stat: by size and time, where the "
        "store has no content tag; auto: by the store's content tag, else by content",
    )

    connect_seconds: float = Field(default=10, gt=0, description="web servers: how long a connection may take")
    read_seconds: float = Field(default=30, gt=0, description="web servers: how long they may send nothing")
    image_seconds: float = Field(default=120, gt=0, description="web servers: how long a whole image may take")
    retry_seconds: float = Field(
        default=10, ge=0, description="how long an image whose host or store fails is retried before its concept fails"
    )
    host_seconds: float = Field(
        default=300, gt=0, description="web servers: a host is given up once its errors have taken this long in all"
    )
    private_redirects: bool = Field(
        default=False,
        description="web servers: follow redirects to addresses inside a network (loopback, link-local, private)",
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        # these decide whether an image is accepted and how a change is noticed, never what its pixels are
        return frozenset(
            {
                "max_bytes", "max_pixels", "min_side", "max_aspect_ratio", "truncated", "allowed_schemes", "digest",
                "connect_seconds", "read_seconds", "image_seconds", "retry_seconds", "host_seconds",
                "private_redirects",
            }
        )  # fmt: skip

    @field_validator("matte_color")
    @classmethod
    def _is_a_color(cls, value: str) -> str:
        from PIL import ImageColor  # takes longer to import than a run spec to read

        ImageColor.getrgb(value)  # ValueError names the value
        return value
