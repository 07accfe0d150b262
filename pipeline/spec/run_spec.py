"""The run spec: all settings of a run in one frozen object, grouped by the part of the pipeline that they control."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, field_validator, model_validator

from ...core.concept import check_template
from ...core.errors import InvalidInput
from ...core.sampling.settings import SamplingSettings
from ...core.scoring.settings import ScoringSettings
from ...core.settings import Settings
from ...core.training.settings import TrainingSettings
from ..manifest.settings import ManifestSettings
from ..manifest.text import MAX_PROMPT_CHARACTERS, check_text
from ..models.names import SPRITEWORLD, check_model_uri, is_uri
from ..references.settings import ReferenceSettings
from ..storage.uri import has_credentials, without_credentials
from .prices import Prices
from .recovery import RecoverySettings
from .yaml_file import format_commented_yaml, format_yaml, load_yaml, parse_yaml, short_repr

_DEFAULT_PROMPTS = (
    "a photo of a {concept} on sand",
    "a photo of a {concept} on snow",
    "a photo of a {concept} on grass",
    "a photo of a {concept} in front of a brick wall",
)


class RunSpec(Settings):
    """All settings of a run. `to_yaml` and `load` write and read it as a YAML file."""

    base_model: str = Field(
        default=SPRITEWORLD,
        min_length=1,
        description="the diffusion model: 'spriteworld' (a small one of drawn scenes, included in this package), a "
        "diffusers folder, a Hub id, or the URI of a folder, such as s3://bucket/model",
    )
    revision: str | None = Field(
        default=None,
        description="the base model's version: a Hub id's branch, tag or commit (null: the main branch), or the digest "
        "'sha256:…' of a URI's folder (null: any)",
    )
    scorer: str | None = Field(
        default=None,
        description="the CLIP model that scores renderings: 'spriteworld' (default with that base model), a folder, "
        "Hub id or URI; null: no scores (default with other base models)",
    )
    scorer_revision: str | None = Field(default=None, description="as `revision`, for the scorer")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of concepts whose manifest row has none")
    prompts: tuple[str, ...] = Field(
        default=_DEFAULT_PROMPTS,
        min_length=1,
        description="prompts for manifest rows that have none; {concept} is replaced by 'V* <macro class>'",
    )
    shard_size: int = Field(
        default=16, ge=1, le=100_000, description="most concepts that a worker processes and commits as one unit"
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="worker processes; null: one per GPU; without GPUs one per CPU core, at most two",
    )
    catalog: str | None = Field(
        default=None,
        min_length=1,
        description="where results are written, unless a command has --catalog: a folder, relative to this file, or a "
        "URI; null: beside the manifest, mugs-catalog for mugs.parquet",
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    scoring: ScoringSettings = Field(default_factory=ScoringSettings)
    references: ReferenceSettings = Field(default_factory=ReferenceSettings)
    manifest: ManifestSettings = Field(default_factory=ManifestSettings)
    recovery: RecoverySettings = Field(default_factory=RecoverySettings)
    prices: Prices = Field(default_factory=Prices)

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"shard_size", "workers", "catalog", "manifest", "recovery", "prices"})

    @model_validator(mode="before")
    @classmethod
    def _set_default_scorer(cls, values: Any) -> Any:
        if isinstance(values, dict) and "scorer" not in values:
            return {**values, "scorer": _default_scorer(values.get("base_model", SPRITEWORLD))}
        return values

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, prompt in enumerate(value):
            _check_template(prompt, f"prompts[{index}] ")
        return value

    @field_validator("base_model", "scorer")
    @classmethod
    def _check_model_names(cls, value: str | None) -> str | None:
        if value is not None and is_uri(value):
            try:
                check_model_uri(value, "model")  # no credentials: every run writes its spec into the catalog
            except InvalidInput as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("catalog")
    @classmethod
    def _check_catalog(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and (has_credentials(value) or any(sign in value for sign in "?#")):
            raise ValueError(
                f"{without_credentials(value)} was given with credentials or a query inside; give it without them: "
                "credentials come from the environment or a profile (AWS_PROFILE)"
            )
        return value

    @field_validator("training")
    @classmethod
    def _check_training_prompt(cls, value: TrainingSettings) -> TrainingSettings:
        _check_template(value.prompt, "training.prompt ")
        return value

    @model_validator(mode="after")
    def _check_scorer_settings(self) -> RunSpec:
        if self.scorer is None:
            gates = ("min_prompt_score", "min_identity_score")
            named = [f"scoring.{gate}" for gate in gates if getattr(self.scoring, gate) is not None]
            if self.scorer_revision is not None:
                named.append("scorer_revision")
            if named:
                raise ValueError(f"{' and '.join(named)} cannot be set without a scorer, and scorer is null")
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunSpec:
        """Read a run spec from a YAML file (a path or fsspec URI).

        Raises:
            InvalidInput: the file cannot be read, or has unknown settings or invalid values; the message names all.
        """
        return load_yaml(path, cls)

    @classmethod
    def from_yaml(cls, text: str | bytes, *, name: str = "run spec") -> RunSpec:
        """As `load`, from YAML text; `name` is what error messages call it."""
        return parse_yaml(text, cls, name=name)

    def to_yaml(self, *, comments: bool = False) -> str:
        """All settings as YAML that loads to an equal spec; with comments, each under its description."""
        if not comments:
            return format_yaml(self)
        scorer_is_default = self.scorer == _default_scorer(self.base_model)
        return format_commented_yaml(self, commented_out=("scorer",) if scorer_is_default else ())


def _default_scorer(base_model: Any) -> str | None:
    return SPRITEWORLD if base_model == SPRITEWORLD else None


def _check_template(prompt: str, where: str) -> None:
    invalid = check_text(prompt, max_characters=MAX_PROMPT_CHARACTERS, multiline=True)
    reason = f"the prompt {invalid[0]}; {invalid[1]}" if invalid else check_template(prompt)
    if reason:
        raise ValueError(f"{where}{short_repr(prompt)}: {reason}")
