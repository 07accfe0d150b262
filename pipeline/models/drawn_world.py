"""What the embedded models of the drawn world do not know."""

from __future__ import annotations

from collections.abc import Iterable

from .folder import Role
from .names import SPRITEWORLD

_SHOWN = 5


def unknown_classes_warning(name: str | None, role: Role, macro_classes: Iterable[str]) -> str | None:
    """A warning about macro classes that a model of the drawn world neither draws nor recognizes.

    Args:
        name: the model's in the run spec; any other than 'spriteworld' is taken to know every class.
    """
    if name != SPRITEWORLD:
        return None
    from ..spriteworld.world import CLASSES  # Pillow, which commands that print text do without

    # "toy robot" is a robot: the last word is the noun.
    unknown = sorted({one for one in macro_classes if not one.split() or one.split()[-1].casefold() not in CLASSES})
    if not unknown:
        return None
    shown = ", ".join(map(repr, unknown[:_SHOWN])) + (f" and {len(unknown) - _SHOWN} more" * (len(unknown) > _SHOWN))
    are = "is none of these" if len(unknown) == 1 else "are none of these"
    drawn = f"{', '.join(CLASSES[:-1])} and {CLASSES[-1]}"
    if role == "scorer":
        fix = "set scorer to a CLIP model, such as 'openai/clip-vit-base-patch32', or to null"
        return f"the scorer spriteworld knows {drawn} only; {shown} {are}, so their scores say nothing; {fix}"
    fix = "for photos set base_model to a Stable Diffusion model"
    return f"the base model spriteworld draws {drawn} only, in a drawn world; {shown} {are}; {fix}"
