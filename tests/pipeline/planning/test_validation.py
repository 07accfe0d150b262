from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from persres.core.training.settings import TrainingSettings
from persres.pipeline.manifest.settings import ManifestSettings
from persres.pipeline.planning.validation import validate_manifest
from persres.pipeline.spec.run_spec import RunSpec


class LetterTokenizer:
    """One token per letter."""

    model_max_length = 40

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    Image.linear_gradient("L").resize((64, 64)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-30])
    return tmp_path


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    complete = [
        {"concept_id": f"c{n}", "macro_class": "mug", "reference_images": ["good.png"]} | r for n, r in enumerate(rows)
    ]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, complete)))
    return folder / "m.jsonl"


def without_drawn_world(warnings: list[str]) -> list[str]:
    """Warnings without the one about classes that the default base model does not know."""
    return [warning for warning in warnings if not warning.startswith("the base model spriteworld draws")]


SPEC = RunSpec(prompts=("a {concept}",), training=TrainingSettings(prompt="one {concept}", identifier_token="sks"))


def test_manifest_without_problems_is_valid(pictures):
    progress: list[tuple[int, int]] = []
    path = manifest(pictures, {}, {"prompts": ["the {concept}"]})

    report = validate_manifest(path, SPEC, tokenizer=LetterTokenizer(), on_progress=lambda *at: progress.append(at))

    assert report.valid and len(report.rows) == 2
    assert progress == [(1, 2), (2, 2)]


def test_one_pass_finds_problems_of_every_kind_even_in_one_row(pictures):
    path = manifest(
        pictures,
        {},
        {
            "reference_images": ["good.png", "cut.png", "none.png"],
            "prompts": ["no placeholder", "{concept}" + "y" * 50],
        },
        {"concept_id": "c0", "reference_images": ["empty.png"]},
        {"macro_class": "m" * 38},
    )

    report = validate_manifest(path, SPEC, tokenizer=LetterTokenizer())

    assert [(p.row, p.column) for p in report.problems] == [
        (1, "prompts"), (1, "reference_images"), (1, "reference_images"), (1, "prompts"),
        (2, "concept_id"), (2, "reference_images"),
        (3, "prompts"), (3, "macro_class"),
    ]  # fmt: skip
    assert all(p.reason and p.fix and p.value for p in report.problems)
    assert [row.row for row in report.rows] == [0] and report.row_count == 4
    assert not report.valid


def test_prompt_lengths_are_not_checked_without_a_tokenizer(pictures):
    assert validate_manifest(manifest(pictures, {"macro_class": "m" * 38}), SPEC).valid


def test_warnings_of_manifest_and_images_are_joined(pictures):
    frames = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    frames[0].save(pictures / "moving.gif", save_all=True, append_images=frames[1:])

    report = validate_manifest(manifest(pictures, {"reference_images": ["moving.gif"], "shelf": 3}), SPEC)

    assert report.valid
    assert ["shelf" in report.warnings[0], "first" in report.warnings[1]] == [True, True]


def test_missing_file_is_reported_without_raising(tmp_path):
    report = validate_manifest(tmp_path / "m.parquet", SPEC, tokenizer=SimpleNamespace(model_max_length=40))

    assert [p.level for p in report.problems] == ["manifest"] and report.rows == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompts": ["a {concept} with a {color} ribbon"]}, "{color} is no placeholder"),
        ({"prompts": ["a {concept} {}"]}, "{} is no placeholder"),
        ({"prompts": ["a {concept} in {{mood}}"]}, "{{mood}} is no placeholder"),
        ({"prompts": ["a {{concept}} on sand"]}, "{{concept}} leaves braces"),
        ({"prompts": ["a sks {concept} on sand"]}, "'sks' stands for the concept already"),
        ({"prompts": ["a {concept}, SKS"]}, "'sks' stands for the concept already"),
        ({"prompts": ["a {concept}", "b {concept}", "a  {concept} "]}, "the same prompt 2 times (prompts[0, 2])"),
        ({"macro_class": "sks mug"}, "'sks' stands for the concept already"),
        ({"macro_class": "NaN"}, "looks like a missing value"),
        ({"macro_class": "null"}, "looks like a missing value"),
        ({"macro_class": "None"}, "looks like a missing value"),
        ({"macro_class": "12.5"}, "no word in it"),
        ({"macro_class": "{color} mug"}, "{color} is no placeholder here"),
        ({"macro_class": "{concept}"}, "{concept} is no placeholder here"),
        ({"reference_images": ["good.png", "good.png"]}, "the same picture 2 times"),
    ],
)
def test_text_that_is_surely_not_meant_is_one_warning(pictures, changes, expected):
    report = validate_manifest(manifest(pictures, {}, changes), SPEC)

    assert report.valid
    [warning] = without_drawn_world(report.warnings)
    assert warning.startswith("row 1, ") and expected in warning and "Fix: " in warning


@pytest.mark.parametrize("prompt", ["a {concept} and its tasks", "the {concept}", "asks for a {concept}"])
def test_usual_texts_give_no_warning(pictures, prompt):
    rows = ({"prompts": [prompt]}, {"macro_class": "Mug 2"}, {"macro_class": "nancy doll"})
    assert without_drawn_world(validate_manifest(manifest(pictures, *rows), SPEC).warnings) == []


def test_text_of_many_rows_is_one_warning(pictures):
    spec = SPEC.model_copy(update={"prompts": ("a {concept} {x}",)})
    rows = [{"prompts": ["a {concept} {y}"]} if number % 2 else {} for number in range(20)]

    of_spec, of_rows = validate_manifest(manifest(pictures, *rows), spec).warnings

    assert of_spec.startswith("run spec, prompts 'a {concept} {x}'")
    assert of_rows.startswith("rows 1, 3, 5 and 7 more, prompts 'a {concept} {y}'")


def test_limits_of_the_run_spec_hold(pictures):
    spec = SPEC.model_copy(update={"manifest": ManifestSettings(max_rows=2)})
    report = validate_manifest(manifest(pictures, {}, {}, {}), spec)
    assert [p.level for p in report.problems] == ["manifest"] and "manifest.max_rows" in report.problems[0].fix
