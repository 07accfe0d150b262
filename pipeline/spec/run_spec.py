"""The run spec: one YAML file, one frozen object made of the settings that each part of the method owns."""

from __future__ import annotations

import difflib
import inspect
import os
import reprlib
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import fsspec
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ...core.concept import check_template
from ...core.errors import InvalidInput
from ...core.sampling.settings import SamplingSettings
from ...core.scoring_settings import ScoringSettings
from ...core.settings import Settings
from ...core.training.settings import TrainingSettings
from ..manifest.text import MAX_PROMPT_CHARACTERS, text_fault
from ..models.names import SPRITEWORLD, check_model_uri, is_uri
from ..references.images import ReferenceSettings
from .prices import Prices
from .recovery import RecoverySettings

_DEFAULT_PROMPTS = (
    "a photo of a {concept} on sand",
    "a photo of a {concept} on snow",
    "a photo of a {concept} on grass",
    "a photo of a {concept} in front of a brick wall",
)


_MAX_BYTES = 1 << 20  # a spec with every setting has a hundred lines; YAML is read slowly


class RunSpec(Settings):
    """Everything that a run does to a manifest, apart from where the manifest and the catalog are."""

    base_model: str = Field(
        default=SPRITEWORLD,
        min_length=1,
        description="'spriteworld' (the drawn world that comes with this package), a diffusers folder, a Hub id, or "
        "the URI of a folder, such as s3://bucket/model",
    )
    revision: str | None = Field(
        default=None,
        description="a Hub id's branch, tag or commit, null: its main branch; a URI's digest 'sha256:…', null: any",
    )
    scorer: str | None = Field(
        default=None,
        description="the CLIP model that scores renderings: 'spriteworld' (the default with that base model), a folder "
        "Hub id or URI; null: no scores",
    )
    scorer_revision: str | None = Field(default=None, description="as revision, of the scorer")
    seed: int = Field(default=0, ge=0, lt=2**63, description="the seed of concepts whose row has none")
    prompts: tuple[str, ...] = Field(
        default=_DEFAULT_PROMPTS,
        min_length=1,
        description="the prompt set of rows whose prompts are null; {concept} becomes 'V* <macro class>'",
    )
    shard_size: int = Field(
        default=16, ge=1, le=100_000, description="concepts that one worker takes and commits at a time"
    )
    workers: int | None = Field(
        default=None, ge=1, description="GPU workers; null: one per GPU, without GPUs one per core and two at most"
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    scoring: ScoringSettings = Field(default_factory=ScoringSettings)
    references: ReferenceSettings = Field(default_factory=ReferenceSettings)
    recovery: RecoverySettings = Field(default_factory=RecoverySettings)
    prices: Prices = Field(default_factory=Prices)

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"shard_size", "workers", "recovery", "prices"})

    @model_validator(mode="before")
    @classmethod
    def _score_spriteworld_with_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and "scorer" not in values:
            return {**values, "scorer": _default_scorer(values.get("base_model", SPRITEWORLD))}
        return values

    @field_validator("prompts")
    @classmethod
    def _are_templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, prompt in enumerate(value):
            _require_template(prompt, f"prompts[{index}] ")
        return value

    @field_validator("base_model", "scorer")
    @classmethod
    def _is_kept_without_secrets(cls, value: str | None) -> str | None:
        if value is not None and is_uri(value):
            try:
                check_model_uri(value, "model")  # every run writes its spec into the catalog
            except InvalidInput as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("training")
    @classmethod
    def _trains_with_a_template(cls, value: TrainingSettings) -> TrainingSettings:
        _require_template(value.prompt, "training.prompt ")
        return value

    @model_validator(mode="after")
    def _scores_only_with_a_scorer(self) -> RunSpec:
        if self.scorer is None:
            gates = ("min_prompt_score", "min_identity_score")
            named = [f"scoring.{gate}" for gate in gates if getattr(self.scoring, gate) is not None]
            if self.scorer_revision is not None:
                named.append("scorer_revision")
            if named:
                raise ValueError(f"{' and '.join(named)} says nothing without a scorer, and scorer is null")
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunSpec:
        """Read a run spec from a YAML file (a path or fsspec URI).

        Raises:
            InvalidInput: the file cannot be read, or has unknown settings or wrong values: all are named.
        """
        name = os.fspath(path)
        try:
            with fsspec.open(name, "rb") as file:
                text = file.read(_MAX_BYTES + 1)  # pyright: ignore[reportAttributeAccessIssue]
        except (OSError, ImportError, ValueError) as error:
            fix = "check the path; `persres-batch init` writes a new run spec"
            raise InvalidInput(f"run spec {name}: cannot be read: {error}", fix=fix) from error
        if len(text) > _MAX_BYTES:
            raise InvalidInput(f"run spec {name}: more than {_MAX_BYTES} bytes", fix="give a run spec's path")
        return cls.from_yaml(text, name=name)

    @classmethod
    def from_yaml(cls, text: str | bytes, *, name: str = "run spec") -> RunSpec:
        """As `load`, from the YAML itself; `name` is what messages call it."""
        try:
            values = yaml.load(text, Loader=_Loader)  # a SafeLoader
        except RecursionError:
            reason = f"run spec {name}: not valid YAML: nested too deep"
            raise InvalidInput(reason, fix="write sections of settings, one level deep") from None
        except Exception as error:  # constructors of dates, numbers and tagged values raise nearly every kind
            reason = f"run spec {name}: not valid YAML: {_first_fault(error)}"
            raise InvalidInput(reason, fix="mend it, or begin again with `persres-batch init`") from error
        if not isinstance(values, dict | None):
            reason = f"run spec {name}: expected settings, found {_brief(values)}"
            raise InvalidInput(reason, fix="write lines of 'name: value'")
        try:
            return cls.model_validate(values or {})
        except ValidationError as error:
            raise _explained(error, name) from None

    def to_yaml(self, *, comments: bool = False) -> str:
        """All settings as YAML that loads to an equal spec; with comments, every setting is explained."""
        if not comments:
            return _yaml(self.model_dump(mode="json"))
        head = "# A run spec for persres-batch. Every setting may be left out; then its default holds.\n\n"
        return head + "\n".join(_commented(self)) + "\n"

    @classmethod
    def commented_yaml(cls) -> str:
        """The defaults, every setting explained by its own description: what `persres-batch init` writes."""
        return cls().to_yaml(comments=True)


def _default_scorer(base_model: Any) -> str | None:
    return SPRITEWORLD if base_model == SPRITEWORLD else None


def _require_template(prompt: str, where: str) -> None:
    fault = text_fault(prompt, max_characters=MAX_PROMPT_CHARACTERS, lines=True)
    reason = f"the prompt {fault[0]}; {fault[1]}" if fault else check_template(prompt)
    if reason:
        raise ValueError(f"{where}{_brief(prompt)}: {reason}")


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses what can only be a slip: a setting given twice, of which YAML would take the last
    unseen, and a key that is no name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(None, None, "a setting's name is a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _first_fault(error: Exception) -> str:
    """What a YAML error says, on one line, with the place it names."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    told = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return where + (str(told).splitlines() or [type(error).__name__])[0]


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items stand under their key, not beside it


def _yaml(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _commented(settings: Settings) -> Iterator[str]:
    """The lines of a settings group; a nested group is a section of its own."""
    values = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from ["", *_comment((inspect.getdoc(type(value)) or "").split("\n\n")[0]), f"{name}:"]
            yield from (textwrap.indent(line, "  ") for line in _commented(value))
            continue
        yield from _comment(" ".join(filter(None, (field.description, _allowed(field)))))
        lines = _yaml({name: values[name]}).rstrip("\n").split("\n")
        follows = name == "scorer" and value == _default_scorer(values["base_model"])
        yield from (f"# {line}" for line in lines) if follows else lines


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False)]


def _allowed(field: FieldInfo) -> str:
    """The choices or bounds that the field itself declares."""
    choices = list(_literals(field.annotation))
    if choices:
        return f"[{' | '.join(choices)}]"
    bounds = {}
    for constraint in field.metadata:
        for symbol, attribute in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt")):
            if (limit := getattr(constraint, attribute, None)) is not None:
                bounds[symbol] = limit
    return f"[{', '.join(f'{symbol} {limit}' for symbol, limit in bounds.items())}]" if bounds else ""


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for argument in get_args(annotation):
            yield from _literals(argument)


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 4, 4, 80, 80, 80


def _brief(value: Any) -> str:
    """`value` as a person wrote it, shortened: aliases make a value of any size from a few lines of YAML."""
    return _REPR.repr(value)


def _explained(error: ValidationError, name: str) -> InvalidInput:
    """Every complaint of pydantic's as: which setting, which value, what is wrong, what to do."""
    explained = [_explain(detail) for detail in error.errors(include_url=False)]
    if len(explained) == 1:
        reason, fix = explained[0]
        return InvalidInput(f"run spec {name}: {reason}", fix=fix)
    lines = "".join(f"\n  {reason}. Fix: {fix}" for reason, fix in explained)
    return InvalidInput(f"run spec {name} has {len(explained)} faults:{lines}\n")


def _explain(detail: ErrorDetails) -> tuple[str, str]:
    location = detail["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        valid = sorted(_group_at(location[:-1]).model_fields)
        near = difflib.get_close_matches(str(location[-1]), valid, n=1)
        fix = (f"did you mean {near[0]!r}? " if near else "") + f"valid names: {', '.join(valid)}"
        return f"there is no setting {key!r}", fix
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message, "change it; `persres-batch init` explains every setting"
    field = _field_at(location)
    reason = f"{key}: {_brief(detail['input'])} is not accepted: {message[:1].lower()}{message[1:]}"
    if field is None or not field.description:
        return reason, "give a section of settings"
    return reason, " ".join(filter(None, ("give", _allowed(field) or "another value", f"({field.description})")))


def _group_at(location: tuple[str | int, ...]) -> type[Settings]:
    group: type[Settings] = RunSpec
    for part in location:
        field = group.model_fields.get(str(part))
        if field and inspect.isclass(field.annotation) and issubclass(field.annotation, Settings):
            group = field.annotation
    return group


def _field_at(location: tuple[str | int, ...]) -> FieldInfo | None:
    names = [part for part in location if isinstance(part, str)]
    return _group_at(tuple(names[:-1])).model_fields.get(names[-1]) if names else None
