from __future__ import annotations

import os

import fsspec
import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.core.sampling.settings import SamplingSettings
from persres.core.settings import Settings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.spec.run_spec import RunSpec


def error_of(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        RunSpec.from_yaml(text, name="run.yaml")
    return str(caught.value)


def settings_names(group: type[Settings], prefix: str = ""):
    for name, field in group.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from settings_names(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description


def test_commented_yaml_loads_to_the_defaults():
    assert RunSpec.from_yaml(RunSpec().to_yaml(comments=True)) == RunSpec()


def test_commented_yaml_describes_every_setting():
    text = RunSpec().to_yaml(comments=True)
    lines = [line.strip() for line in text.splitlines()]
    joined = " ".join(line.removeprefix("# ") for line in lines)

    for name, description in settings_names(RunSpec):
        key = name.split(".")[-1]
        assert any(line.removeprefix("# ").startswith(f"{key}:") for line in lines), name
        assert description, f"{name} has no description"
        assert description in joined, name
    assert max(map(len, text.splitlines())) <= 120


def test_comments_show_choices_and_bounds():
    text = RunSpec().to_yaml(comments=True)

    assert "[ddim | dpmsolver++]" in text
    assert "[>= 1, <= 100000]" in text and "[auto | >= 1, <= 1024]" in text


@pytest.mark.parametrize("comments", [False, True])
def test_spec_survives_yaml(comments):
    spec = RunSpec(
        base_model="models/é: # x",
        scorer=None,
        seed=3,
        prompts=("{concept} in 'quotes'", "a\n{concept}: yes", "no {concept} " + "very " * 60 + "long"),
        training=TrainingSettings(learning_rate=1e-5),
        sampling=SamplingSettings(variants=("base", "residual", "lag"), negative_prompt="off"),
        workers=3,
    )

    assert RunSpec.from_yaml(spec.to_yaml(comments=comments)) == spec


prompts = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map("{{concept}}{}".format), min_size=1
)


@settings(max_examples=40, deadline=None)
@given(
    prompts.filter(lambda found: all(text.count("{concept}") == 1 for text in found)),
    st.integers(0, 2**63 - 1),
    st.booleans(),
)
def test_prompts_of_any_text_survive_yaml(prompts, seed, comments):
    spec = RunSpec(prompts=tuple(prompts), seed=seed)

    assert RunSpec.from_yaml(spec.to_yaml(comments=comments)) == spec


def test_empty_file_gives_the_defaults():
    assert RunSpec.from_yaml("") == RunSpec.from_yaml("# nothing\n") == RunSpec()


def test_learning_rate_may_be_written_in_exponent_form():
    # YAML 1.1 reads 1e-3 as text
    assert RunSpec.from_yaml("training: {learning_rate: 1e-3}").training.learning_rate == 0.001


def test_only_spriteworld_has_a_default_scorer():
    assert RunSpec().scorer == "spriteworld"
    assert RunSpec(base_model="team/model").scorer is None
    assert RunSpec(scorer=None).scorer is None
    assert RunSpec(base_model="team/model", scorer="team/clip").scorer == "team/clip"


def test_commented_scorer_follows_the_base_model():
    text = RunSpec().to_yaml(comments=True).replace("base_model: spriteworld", "base_model: team/model")

    assert RunSpec.from_yaml(text).scorer is None


def test_load_reads_paths_and_uris(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 4", "utf-8")
    with fsspec.open("memory://specs/run.yaml", "wb") as file:
        file.write(b"seed: 5")

    assert RunSpec.load(tmp_path / "run.yaml").seed == 4
    assert RunSpec.load("memory://specs/run.yaml").seed == 5


def test_unreadable_file_is_invalid_input(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, "nosuch://run.yaml"):
        with pytest.raises(InvalidInput, match="cannot be read") as caught:
            RunSpec.load(path)
        assert os.fspath(path) in str(caught.value)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidInput, match="not valid YAML"):
        RunSpec.load(tmp_path / "bad.yaml")


def test_unknown_setting_is_reported_with_the_nearest_and_all_names():
    message = error_of("training: {lerning_rate: 1}")

    assert "run.yaml: there is no setting 'training.lerning_rate'" in message
    assert "did you mean 'learning_rate'?" in message
    assert all(name in message for name in TrainingSettings.model_fields)
    assert "did you mean" not in error_of("zzz: 1")


def test_invalid_value_is_reported_with_setting_bounds_and_description():
    message = error_of("training: {iterations: 0}")

    assert "training.iterations: 0 is not accepted: input should be greater than or equal to 1" in message
    assert "[>= 1, <= 100000]" in message
    assert str(TrainingSettings.model_fields["iterations"].description) in message
    assert "[ddim | dpmsolver++]" in error_of("sampling: {scheduler: euler}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: [a mug]", "prompts[0] 'a mug': the prompt must contain {concept}"),
        ("prompts: []", "prompts"),
        ("training: {prompt: a mug}", "training.prompt 'a mug': the prompt must contain {concept}"),
        ("training: 4", "training: 4 is not accepted"),
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("seed: [", "not valid YAML"),
        ("- seed", "expected settings"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("references: {matte_color: nocolour}", "references.matte_color"),
        ("1: 2", "a setting's name must be a string"),
        ("[a, b]: 2", "a setting's name must be a string"),
    ],
)
def test_other_errors_are_reported(text, message):
    assert message in error_of(text)


def test_all_errors_are_reported_at_once():
    message = error_of("seed: -1\nsampling: {steps: 0}\nworkers: none\nshard: 3")

    assert "4 errors" in message
    assert all(
        name in message for name in ("seed: -1", "sampling.steps: 0", "workers: 'none'", "'shard'", "'shard_size'")
    )


def test_spec_is_frozen_and_rejects_unknown_names():
    with pytest.raises(pydantic.ValidationError):
        RunSpec().seed = 4  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        RunSpec(nonsense=1)  # type: ignore[call-arg]


def test_plain_yaml_holds_every_setting():
    assert set(yaml.safe_load(RunSpec().to_yaml())) == set(RunSpec.model_fields)


@pytest.mark.parametrize("catalog", ["s3://key:hunter2@bucket/c", "s3://hunter2@bucket/c", "az://c/out?sig=hunter2"])
def test_catalog_with_credentials_is_refused(catalog):
    reason = error_of(f"catalog: {catalog}")
    assert "catalog: " in reason and "credentials" in reason and "hunter2" not in reason


def test_catalog_is_a_path_or_uri_and_not_fingerprinted():
    assert "''" in error_of('catalog: ""')
    spec = RunSpec.from_yaml("catalog: s3://bucket/mugs")
    assert RunSpec.from_yaml(spec.to_yaml()) == spec and spec.catalog == "s3://bucket/mugs"
    assert spec.fingerprint_fields() == RunSpec().fingerprint_fields()
