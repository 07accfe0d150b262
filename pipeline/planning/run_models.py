"""The models that a run spec names, and whether the spec suits the base model."""

from __future__ import annotations

from ...core.errors import InvalidInput
from ...core.plural import plural
from ..models.folder import ResolvedModel
from ..models.remote_folder import OnBytes
from ..models.resolve import resolve_model
from ..spec.run_spec import RunSpec


def resolve_base_model(spec: RunSpec, *, weights: bool = True, on_bytes: OnBytes | None = None) -> ResolvedModel:
    """Resolve the run spec's base model and check the spec against it; arguments as for `resolve_model`.

    Raises:
        InvalidInput: as `resolve_model` and `check_spec_fits_model`.
    """
    base = resolve_model(spec.base_model, spec.revision, weights=weights, on_bytes=on_bytes)
    check_spec_fits_model(spec, base.path, has_weights=base.has_weights)
    return base


def resolve_scorer(spec: RunSpec, *, weights: bool = True, on_bytes: OnBytes | None = None) -> ResolvedModel | None:
    """Resolve the run spec's scorer, None if it has none; arguments as for `resolve_model`."""
    if spec.scorer is None:
        return None
    return resolve_model(spec.scorer, spec.scorer_revision, role="scorer", weights=weights, on_bytes=on_bytes)


def check_spec_fits_model(spec: RunSpec, path: str, *, has_weights: bool = True) -> None:
    """Check a spec against the base model's configuration and tokenizer, so that workers need not fail on it.

    Args:
        path: the folder of the spec's base model.
        has_weights: False if the folder has only configuration and tokenizer.

    Raises:
        InvalidInput: the base model's parts do not fit together or cannot be personalized, V* is not a single token, or
            the image size or the negative prompt does not suit the model.
    """
    from ...core.base_model import check_parts, load_tokenizer  # torch and diffusers take seconds to import
    from ...core.identifier_token import identifier_id

    pixels_per_latent = check_parts(path, spec.base_model, has_weights=has_weights)
    tokenizer = load_tokenizer(path)
    identifier_id(tokenizer, spec.training.identifier_token)
    for side in ("height", "width"):
        pixels = getattr(spec.sampling, side)
        if pixels is not None and pixels % pixels_per_latent:
            reason = f"sampling.{side}: {pixels} is not a multiple of {pixels_per_latent}, the pixels per latent"
            nearest = max(1, round(pixels / pixels_per_latent)) * pixels_per_latent
            raise InvalidInput(reason, fix=f"for example {nearest}")
    tokens = len(tokenizer(spec.sampling.negative_prompt, truncation=False, verbose=False)["input_ids"])
    limit = int(tokenizer.model_max_length)
    if tokens > limit:
        reason = f"sampling.negative_prompt is {tokens} tokens long, the text encoder reads {limit}"
        raise InvalidInput(reason, fix=f"shorten it by {plural(tokens - limit, 'token')}")
