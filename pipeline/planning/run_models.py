"""Whether a run spec and a base model go together: found out from its configuration and tokenizer, without weights."""

from __future__ import annotations

from ...core.errors import InvalidInput
from ..models.folder import ResolvedModel
from ..models.remote_folder import OnBytes
from ..models.resolve import resolve_model
from ..spec.run_spec import RunSpec


def resolve_base_model(spec: RunSpec, *, weights: bool = True, on_bytes: OnBytes | None = None) -> ResolvedModel:
    """The run spec's base model, which goes with the rest of the spec; otherwise as `resolve_model`."""
    found = find_base_model(spec, weights=weights, on_bytes=on_bytes)
    check_spec_fits(spec, found.path, has_weights=found.has_weights)
    return found


def find_base_model(spec: RunSpec, *, weights: bool = True, on_bytes: OnBytes | None = None) -> ResolvedModel:
    """The run spec's base model, not yet compared with the rest of the spec, which loads torch and diffusers."""
    return resolve_model(spec.base_model, spec.revision, weights=weights, on_bytes=on_bytes)


def resolve_scorer(spec: RunSpec, *, weights: bool = True, on_bytes: OnBytes | None = None) -> ResolvedModel | None:
    """The run spec's scorer, None where renderings are not scored; otherwise as `resolve_model`."""
    if spec.scorer is None:
        return None
    return resolve_model(spec.scorer, spec.scorer_revision, role="scorer", weights=weights, on_bytes=on_bytes)


def check_spec_fits(spec: RunSpec, path: str, *, has_weights: bool = True) -> None:
    """Refuse a spec that every worker would refuse, before there is one.

    Args:
        path: the folder of the spec's base model.
        has_weights: False: it holds configuration and tokenizer only.

    Raises:
        InvalidInput: the base model's parts do not belong together or are of a kind that cannot be personalized, V* is
            no single token, or a size or the negative prompt does not suit the model.
    """
    from ...core.base_model import check_parts, load_tokenizer  # torch and diffusers take seconds to import
    from ...core.identifier_token import identifier_id

    pixels_per_latent = check_parts(path, spec.base_model, has_weights=has_weights)
    tokenizer = load_tokenizer(path)
    identifier_id(tokenizer, spec.training.identifier_token)
    for side in ("height", "width"):
        pixels = getattr(spec.sampling, side)
        if pixels is not None and pixels % pixels_per_latent:
            reason = f"sampling.{side}: {pixels} is no multiple of {pixels_per_latent}, the pixels of one latent"
            nearest = max(1, round(pixels / pixels_per_latent)) * pixels_per_latent
            raise InvalidInput(reason, fix=f"for example {nearest}")
    tokens = len(tokenizer(spec.sampling.negative_prompt, truncation=False, verbose=False)["input_ids"])
    limit = int(tokenizer.model_max_length)
    if tokens > limit:
        reason = f"sampling.negative_prompt is {tokens} tokens long, the text encoder reads {limit}"
        raise InvalidInput(reason, fix=f"shorten it by {tokens - limit}")
