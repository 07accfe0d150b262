"""How well a rendering shows the concept and its prompt, and the gate that flags those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from .batching import batches
from .errors import InvalidInput
from .scoring_settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class QualityScores:
    """Plain cosines (not CustomConcept101's, which multiplies by 2.5).

    Attributes:
        prompt: CLIP text alignment: image against the prompt with the macro class in place of V* (CLIP-T).
        identity: CLIP image alignment: mean over the references (CLIP-I). It also rewards a copied background.
        passed: whether both reach the gate; None when no gate is set.
    """

    prompt: float
    identity: float
    passed: bool | None


@dataclass(frozen=True, eq=False)
class Scorer:
    """A CLIP model that embeds pictures and texts on the unit sphere."""

    model: CLIPModel
    image_processor: CLIPImageProcessorPil
    tokenizer: CLIPTokenizer
    batch_size: int = 32

    def prepare(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures, each H x W x 3 uint8 -> [N, 3, S, S] float32 on the CPU, scaled and cropped for the model.

        It uses neither the model nor its device, so it may run beside other work.
        """
        prepared = [self.image_processor(Image.fromarray(picture), return_tensors="np") for picture in pictures]
        return torch.from_numpy(np.concatenate([np.asarray(one["pixel_values"], np.float32) for one in prepared]))

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[np.ndarray] | Tensor) -> Tensor:
        """Pictures, or what `prepare` made of them -> [N, E] float32 on the CPU, of length 1."""
        pixels = pictures if isinstance(pictures, Tensor) else self.prepare(pictures)
        rows = []
        for batch in pixels.split(self.batch_size):
            padded = torch.cat((batch, batch[-1:].expand(self.batch_size - len(batch), -1, -1, -1)))
            features = _features(self.model.get_image_features(padded.to(self.model.device)))
            rows.append(features[: len(batch)])
        return _on_unit_sphere(torch.cat(rows))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [N, E] float32 on the CPU, of length 1. A text longer than the tokenizer's length is cut."""
        rows = []
        for batch in batches(texts, self.batch_size):
            padded = [*batch, *[batch[-1]] * (self.batch_size - len(batch))]
            # Padded to the full length, as CLIP was trained: another text's length then cannot change this one's bits.
            inputs = self.tokenizer(padded, padding="max_length", truncation=True, return_tensors="pt")
            ids, mask = inputs["input_ids"].to(self.model.device), inputs["attention_mask"].to(self.model.device)
            features = _features(self.model.get_text_features(input_ids=ids, attention_mask=mask))
            rows.append(features[: len(batch)])
        return _on_unit_sphere(torch.cat(rows))


def _features(output: object) -> Tensor:
    # transformers 5 answers with a model output whose pooler_output is the projected embedding; 4 with the tensor.
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def _on_unit_sphere(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def load_scorer(path: str | Path, *, device: torch.device | str = "cpu", batch_size: int = 32) -> Scorer:
    """Load a transformers CLIPModel folder, in float32.

    Raises:
        InvalidInput: the folder holds no CLIPModel with safetensors weights, its tokenizer and its image processor.
    """
    try:
        model = CLIPModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        # Pillow's resampling, not torchvision's: scores must not depend on what else is installed.
        images = CLIPImageProcessorPil.from_pretrained(path, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(
            f"scorer could not be loaded: {str(error).splitlines()[0]}",
            fix="give a transformers CLIPModel folder or Hub id, or `scorer: null`",
        ) from error
    model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return Scorer(model, images, tokenizer, batch_size)


def score_renderings(
    scorer: Scorer,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    references: Sequence[np.ndarray] | Tensor,
    settings: ScoringSettings,
) -> list[QualityScores]:
    """Score one concept's renderings.

    Args:
        images: N renderings, each H x W x 3 uint8.
        prompts: what each should show, in words the scorer knows: "a mug on grass", without V*.
        references: the concept's reference images, or what `Scorer.prepare` made of them.
    """
    if not images:
        return []
    rendered = scorer.embed_images(images)
    prompt_scores = (rendered * scorer.embed_texts(prompts)).sum(dim=1).tolist()
    identity_scores = (rendered @ scorer.embed_images(references).T).mean(dim=1).tolist()
    return [
        QualityScores(prompt, identity, passes_gate(prompt, identity, settings))
        for prompt, identity in zip(prompt_scores, identity_scores, strict=True)
    ]


def passes_gate(prompt: float, identity: float, settings: ScoringSettings) -> bool | None:
    """Whether both scores reach the gate's bounds; None when there is no bound."""
    if settings.min_prompt_score is None and settings.min_identity_score is None:
        return None
    return prompt >= _bound(settings.min_prompt_score) and identity >= _bound(settings.min_identity_score)


def _bound(score: float | None) -> float:
    return -float("inf") if score is None else score
