"""The models that a run spec names, and whether the spec suits the base model."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.errors import InvalidInput
from ...core.plural import plural
from ..models.drawn_world import unknown_classes_warning
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


def resolve_models(spec: RunSpec, *, weights: bool = True) -> tuple[ResolvedModel, list[str]]:
    """Resolve the run spec's base model and its scorer, and check both; arguments as for `resolve_model`.

    Returns:
        The base model, and warnings about weights that are not used.

    Raises:
        InvalidInput: as `resolve_model` and `check_models`.
    """
    base = resolve_model(spec.base_model, spec.revision, weights=weights)
    return base, check_models(spec, base, resolve_scorer(spec, weights=weights))


def check_models(spec: RunSpec, base: ResolvedModel, scorer: ResolvedModel | None) -> list[str]:
    """Check the models as far as they are on this machine: `check_spec_fits_model`, and the weights of the scorer.

    Returns:
        Warnings about weights that are not used.

    Raises:
        InvalidInput: as `check_spec_fits_model`, or the scorer's weights do not fit it.
    """
    warnings = check_spec_fits_model(spec, base.path, has_weights=base.has_weights)
    return [*warnings, *check_scorer_weights(spec, scorer)]


def check_scorer_weights(spec: RunSpec, scorer: ResolvedModel | None) -> list[str]:
    """As `check_models`, for the scorer alone, if there is one whose weights are on this machine."""
    if scorer is None or not scorer.has_weights:
        return []
    from ...core.scoring.quality_scores import check_scorer  # torch takes seconds to import

    return check_scorer(scorer.path, spec.scorer or "")


def drawn_world_warnings(spec: RunSpec, macro_classes: Iterable[str]) -> list[str]:
    """Warnings about macro classes that the run spec's models do not know, if those are the embedded ones."""
    macro_classes = set(macro_classes)
    found = [unknown_classes_warning(spec.base_model, "base_model", macro_classes)]
    if found == [None]:
        found = [unknown_classes_warning(spec.scorer, "scorer", macro_classes)]
    return [warning for warning in found if warning]


def check_spec_fits_model(spec: RunSpec, path: str, *, has_weights: bool = True) -> list[str]:
    """Check a spec against the base model, so that workers need not fail on it. Loads the tokenizer, and no weights.

    Args:
        path: the folder of the spec's base model.
        has_weights: False if the folder has only configuration and tokenizer.

    Returns:
        Warnings about weights that are not used.

    Raises:
        InvalidInput: the base model's parts do not fit together or cannot be personalized, its weights do not fit its
            configuration, V* is not a single token, or the image size or the negative prompt does not suit the model.
    """
    from ...core.base_model import check_parts, check_weights, load_tokenizer  # torch takes seconds to import
    from ...core.identifier_token import identifier_id

    pixels_per_latent = check_parts(path, spec.base_model)
    warnings = check_weights(path, spec.base_model) if has_weights else []
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
    return warnings
