"""The drawn world: drawings are deterministic, and masks cover the sprites."""

from __future__ import annotations

import numpy as np
import pytest

from persres.pipeline.spriteworld.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    PATTERNS,
    SIZE,
    draw,
    random_identity,
    rng_for,
)


def test_rng_gives_the_same_numbers_everywhere() -> None:
    assert rng_for("a", 1).integers(1_000_000, size=3).tolist() == [886384, 289552, 258099]
    assert rng_for("a", 1).random() != rng_for("a", 2).random()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_drawing_is_deterministic_and_well_formed(kind: str, background: str) -> None:
    who = random_identity(f"test/{kind}", kind)
    picture, mask = draw(who, background, "seed")
    again, again_mask = draw(who, background, "seed")
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert mask.shape == (SIZE, SIZE) and mask.dtype == bool
    assert np.array_equal(picture, again) and np.array_equal(mask, again_mask)
    assert 0.12 < mask.mean() < 0.55


def test_drawings_have_not_changed() -> None:
    """Coarse statistics, since another version of the drawing library may round differently."""
    for kind, golden in GOLDEN_MEANS.items():
        picture, mask = draw(random_identity(f"golden/{kind}", kind), "grass", "golden")
        means = [*picture.reshape(-1, 3).mean(0), 100 * mask.mean()]
        assert np.allclose(means, golden, atol=1.5), (kind, [round(float(m), 1) for m in means])


@pytest.mark.parametrize("kind", CLASSES)
def test_mask_is_where_identities_differ(kind: str) -> None:
    """Two identities of equal proportions differ only inside the mask and at its anti-aliased edge."""
    first = random_identity("mask/0", kind)
    others = (random_identity(f"mask/{i}", kind) for i in range(1, 50))
    second = next(other for other in others if other.body != first.body)
    second = type(second)(**{**second.__dict__, "proportions": first.proportions})
    a, mask = draw(first, "studio", "same")
    b, mask_b = draw(second, "studio", "same")
    assert np.array_equal(mask, mask_b)
    changed = np.abs(a.astype(int) - b).max(-1) > 40
    assert changed[mask].mean() > 0.3
    assert not changed[~mask].any()


def test_body_colour_dominates_the_sprite() -> None:
    dominant = 0
    for i in range(60):
        who = random_identity(f"body/{i}")
        picture, mask = draw(who, "studio", i)
        inside = picture[mask].astype(float)
        near = [np.linalg.norm(inside - shade, axis=1) < 40 for shade in who.shades]
        dominant += near[0].sum() >= max(near[1].sum(), near[2].sum())
    assert dominant >= 45


def test_identities_cover_the_world() -> None:
    many = [random_identity(f"cover/{i}") for i in range(400)]
    assert {who.macro_class for who in many} == set(CLASSES)
    assert {who.body for who in many} == set(COLOURS)
    assert {who.pattern for who in many} == set(PATTERNS)
    assert len(set(many)) == len(many)


def test_sprite_is_inside_its_image() -> None:
    for i in range(60):
        _, mask = draw(random_identity(f"inside/{i}"), "studio", i)
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.mean() < 0.1


GOLDEN_MEANS: dict[str, list[float]] = {
    "robot": [115.5, 159.3, 132.0, 30.0],
    "fish": [120.1, 173.7, 147.3, 25.5],
    "house": [133.3, 177.8, 162.7, 32.9],
    "mug": [150.4, 174.8, 121.9, 37.4],
    "car": [131.4, 168.6, 145.1, 30.0],
    "tree": [123.2, 183.8, 162.2, 28.8],
}
"""Mean red, green, blue, and the mask's share in percent."""
