"""Scores are plain cosines of a CLIP model, one picture's independent of the others', and the gate compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from persres.core.errors import InvalidInput
from persres.core.quality_scores import Scorer, load_scorer, passes_gate, score_renderings
from persres.core.scoring_settings import ScoringSettings

from ..support.tiny_models import write_tiny_scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scorer(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return load_scorer(folder, batch_size=4)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8) for number in range(count)]


def test_scores_are_the_cosines_a_clip_user_would_compute(scorer: Scorer, folder: Path):
    images, references = pictures(5)[:2], pictures(5)[2:]
    prompts = ["a mug on grass", "a mug in the snow"]
    scores = score_renderings(scorer, images, prompts, references, ScoringSettings())

    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def embed(picture: np.ndarray) -> torch.Tensor:
        pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixels).pooler_output)[0]

    for image, prompt, score in zip(images, prompts, scores, strict=True):
        tokens = tokenizer(prompt, padding="max_length", return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        cosine = torch.nn.functional.cosine_similarity
        assert score.prompt == pytest.approx(cosine(embed(image), text, dim=0).item(), abs=1e-5)
        expected = np.mean([cosine(embed(image), embed(reference), dim=0).item() for reference in references])
        assert score.identity == pytest.approx(expected, abs=1e-5)
        assert score.passed is None


def test_neighbours_change_no_bit(scorer: Scorer):
    many = pictures(7)
    assert torch.equal(scorer.embed_images(many)[5:6], scorer.embed_images(many[5:6]))
    texts = ["a mug", "a red mug on the grass", "a dog"]
    assert torch.equal(scorer.embed_texts(texts)[2:], scorer.embed_texts(texts[2:]))


def test_pictures_prepared_beforehand_are_embedded_to_the_bit_as_those_that_are_not(scorer: Scorer):
    many = pictures(7)
    prepared = scorer.prepare(many)
    assert prepared.dtype == torch.float32 and prepared.shape[:2] == (7, 3)
    assert torch.equal(scorer.embed_images(prepared), scorer.embed_images(many))


def test_a_picture_is_most_like_itself(scorer: Scorer):
    one = pictures(1)
    assert score_renderings(scorer, one, ["a mug"], one, ScoringSettings())[0].identity == pytest.approx(1.0, abs=1e-5)


def test_nothing_rendered_is_nothing_scored(scorer: Scorer):
    assert score_renderings(scorer, [], [], pictures(1), ScoringSettings()) == []


@pytest.mark.parametrize(
    ("prompt_bound", "identity_bound", "passed"),
    [(None, None, None), (0.2, None, True), (0.3, None, False), (0.2, 0.5, True), (0.0, 0.6, False), (None, 0.5, True)],
)
def test_the_gate(prompt_bound, identity_bound, passed):
    settings = ScoringSettings(min_prompt_score=prompt_bound, min_identity_score=identity_bound)
    assert passes_gate(0.25, 0.5, settings) is passed


def test_a_folder_without_a_clip_model_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="scorer could not be loaded"):
        load_scorer(tmp_path)
