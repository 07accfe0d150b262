"""Scores are plain cosines of a CLIP model and independent of the batch; the gate compares them with its minima."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from persres.core.errors import InvalidInput
from persres.core.scoring.quality_scores import Scorer, load_scorer, passes_gate, score_renderings
from persres.core.scoring.settings import ScoringSettings

from ...support.tiny_models import write_tiny_scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scorer(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return load_scorer(folder, batch_size=4)


def random_images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8) for number in range(count)]


def test_scores_equal_the_cosines_of_transformers_own_pipeline(scorer: Scorer, folder: Path):
    images, references = random_images(5)[:2], random_images(5)[2:]
    prompts = ["a mug on grass", "a mug in the snow"]
    scores = score_renderings(scorer, images, prompts, references, ScoringSettings())

    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def embed(image: np.ndarray) -> torch.Tensor:
        pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixels).pooler_output)[0]

    for image, prompt, score in zip(images, prompts, scores, strict=True):
        tokens = tokenizer(prompt, padding="max_length", return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        cosine = torch.nn.functional.cosine_similarity
        assert score.prompt == pytest.approx(cosine(embed(image), text, dim=0).item(), abs=1e-5)
        expected = np.mean([cosine(embed(image), embed(reference), dim=0).item() for reference in references])
        assert score.identity == pytest.approx(expected, abs=1e-5)
        assert score.passed is None


def test_embeddings_do_not_depend_on_the_rest_of_the_batch(scorer: Scorer):
    many = random_images(7)
    assert torch.equal(scorer.embed_images(many)[5:6], scorer.embed_images(many[5:6]))
    texts = ["a mug", "a red mug on the grass", "a dog"]
    assert torch.equal(scorer.embed_texts(texts)[2:], scorer.embed_texts(texts[2:]))


def test_embeddings_of_prepared_images_are_the_same_bits(scorer: Scorer):
    many = random_images(7)
    prepared = scorer.prepare(many)
    assert prepared.dtype == torch.float32 and prepared.shape[:2] == (7, 3)
    assert torch.equal(scorer.embed_images(prepared), scorer.embed_images(many))


def test_identity_score_of_an_image_with_itself_is_one(scorer: Scorer):
    one = random_images(1)
    assert score_renderings(scorer, one, ["a mug"], one, ScoringSettings())[0].identity == pytest.approx(1.0, abs=1e-5)


def test_no_renderings_have_no_scores(scorer: Scorer):
    assert score_renderings(scorer, [], [], random_images(1), ScoringSettings()) == []


@pytest.mark.parametrize(
    ("prompt_bound", "identity_bound", "passed"),
    [(None, None, None), (0.2, None, True), (0.3, None, False), (0.2, 0.5, True), (0.0, 0.6, False), (None, 0.5, True)],
)
def test_gate_requires_both_minima(prompt_bound, identity_bound, passed):
    settings = ScoringSettings(min_prompt_score=prompt_bound, min_identity_score=identity_bound)
    assert passes_gate(0.25, 0.5, settings) is passed


def test_folder_without_a_clip_model_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="scorer: no weights"):
        load_scorer(tmp_path)
