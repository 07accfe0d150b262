"""Loading any text gives a run spec that YAML preserves, or an error with a fix."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.core.settings import Settings
from persres.pipeline.spec.run_spec import RunSpec


def load(text: str | bytes) -> RunSpec | None:
    """The spec, or None if it is invalid; checks the error's message."""
    try:
        spec = RunSpec.from_yaml(text)
    except InvalidInput as refused:
        message = str(refused)
        assert "Fix: " in message and message.encode() and len(message) < 20_000, message
        return None
    assert RunSpec.from_yaml(spec.to_yaml()) == spec
    assert RunSpec.from_yaml(spec.to_yaml(comments=True)) == spec
    return spec


def settings_of(group: type[Settings]) -> dict[str, type[Settings] | None]:
    """The names of a group's settings, each with its group if it is nested."""
    kinds = {name: field.annotation for name, field in group.model_fields.items()}
    return {name: kind if _is_group(kind) else None for name, kind in kinds.items()}


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


TAGS = "int float bool null timestamp binary set omap pairs merge value map str".split()  # noqa: SIM905
yaml_values = st.sampled_from(
    ["1", "-1", "1e3", "1e400", ".nan", ".inf", "null", "~", "yes", "0x1F", "0o17", "1:30", "2026-13-45", "''", "[]",
     "{}", "&a x", "*a", "|", ">-", "<<: *a", "!!python/name:os.system", "a: b: c", "\t", "\ud800", "\0",
     "- -", "? x", "%YAML 9"]
)  # fmt: skip
tagged = st.builds("!!{} {}".format, st.sampled_from(TAGS), yaml_values | st.text(max_size=5))
any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("a {concept}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=200))
@example(b"[" * 60_000)
@example(b"a: " * 20_000)
@example(b"\xef\xbb\xbfseed: 1")
def test_arbitrary_bytes_are_a_spec_or_invalid_input(content):
    load(content)


@given(st.text(max_size=120))
def test_arbitrary_text_is_a_spec_or_invalid_input(text):
    load(text)


@given(st.sampled_from([*RunSpec.model_fields, "x"]), yaml_values | tagged)
@settings(max_examples=300)
def test_setting_with_an_arbitrary_value_is_a_spec_or_invalid_input(name, value):
    load(f"{name}: {value}")


@st.composite
def values_for(draw: st.DrawFn) -> dict[str, Any]:
    """Some settings at any depth, each with a value of any kind."""

    def of_group(group: type[Settings]) -> dict[str, Any]:
        known = settings_of(group)
        names = draw(st.lists(st.sampled_from([*known, "unknown"]), max_size=4, unique=True))
        inner = {name: known.get(name) for name in names}
        return {
            name: of_group(kind) if kind and draw(st.booleans()) else draw(any_value) for name, kind in inner.items()
        }

    return of_group(RunSpec)


@given(values_for())
@settings(max_examples=300)
def test_arbitrary_settings_are_a_spec_or_invalid_input(values):
    load(json.dumps(values))


@pytest.mark.parametrize("depth", [3, 9])
def test_nested_aliases_are_invalid_input(depth):
    lines = ["x: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(depth)]
    for setting in ("seed", "prompts", "training", "base_model"):
        assert load("\n".join([*lines, f"{setting}: *a{depth}"])) is None
