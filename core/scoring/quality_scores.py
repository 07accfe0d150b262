"""Scores of renderings, CLIP text and image alignment, and the quality gate.

Shapes: N images or texts, E the width of CLIP's embeddings, S x S the size of CLIP's input images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ..base_model import unusable_weights
from ..batching import batches
from ..errors import InvalidInput
from ..weights.fit import check_part, load_clip
from .settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class QualityScores:
    """The scores of one rendering: plain cosines, not multiplied by 2.5 as in CustomConcept101.

    Attributes:
        prompt: CLIP text alignment (CLIP-T): image against the prompt with the macro class alone, without V*.
        identity: CLIP image alignment (CLIP-I): mean over the references. A copied background raises it too.
        passed: whether both scores reach the gate's minima; None without a gate.
    """

    prompt: float
    identity: float
    passed: bool | None


@dataclass(frozen=True, eq=False)
class Scorer:
    """A CLIP model with its tokenizer and image processor. An image's or text's embedding has length 1."""

    model: CLIPModel
    image_processor: CLIPImageProcessorPil
    tokenizer: CLIPTokenizer
    batch_size: int = 32

    def prepare(self, images: Sequence[np.ndarray]) -> Tensor:
        """Scale and crop images, each H x W x 3 uint8, to the model's input, [N, 3, S, S] float32 on the CPU.

        Uses neither the model nor its device, so it is safe to call from another thread.
        """
        prepared = [self.image_processor(Image.fromarray(image), return_tensors="np") for image in images]
        return torch.from_numpy(np.concatenate([np.asarray(one["pixel_values"], np.float32) for one in prepared]))

    @torch.inference_mode()
    def embed_images(self, images: Sequence[np.ndarray] | Tensor) -> Tensor:
        """Embed images, or the result of `prepare`: [N, E] float32 on the CPU, normalized."""
        pixels = images if isinstance(images, Tensor) else self.prepare(images)
        rows = []
        for batch in pixels.split(self.batch_size):
            padded = torch.cat((batch, batch[-1:].expand(self.batch_size - len(batch), -1, -1, -1)))
            features = _features(self.model.get_image_features(padded.to(self.model.device)))
            rows.append(features[: len(batch)])
        return _normalized(torch.cat(rows))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: [N, E] float32 on the CPU, normalized. A text longer than the tokenizer allows is truncated."""
        rows = []
        for batch in batches(texts, self.batch_size):
            padded = [*batch, *[batch[-1]] * (self.batch_size - len(batch))]
            # Padded to the full length, as in CLIP's training, so that no text's bits depend on another's length.
            inputs = self.tokenizer(padded, padding="max_length", truncation=True, return_tensors="pt")
            ids, mask = inputs["input_ids"].to(self.model.device), inputs["attention_mask"].to(self.model.device)
            features = _features(self.model.get_text_features(input_ids=ids, attention_mask=mask))
            rows.append(features[: len(batch)])
        return _normalized(torch.cat(rows))


def _features(output: object) -> Tensor:
    # transformers 5 returns a model output whose pooler_output is the projected embedding, 4 the tensor itself.
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def _normalized(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def check_scorer(path: str | Path, name: str) -> list[str]:
    """Compare the weights of the scorer in a folder, by name and shape, with its configuration. Loads no weights.

    Args:
        name: `scorer` of the run spec, for messages.

    Returns:
        Warnings about weights that are not used.

    Raises:
        InvalidInput: weights are missing, of another shape, quantized or damaged.
    """
    with unusable_weights(f"scorer {name!r}"):
        warning = check_part(CLIPModel, Path(path), "transformers").warning
    return [f"scorer {name!r}: {warning}"] if warning else []


def load_scorer(path: str | Path, *, device: torch.device | str = "cpu", batch_size: int = 32) -> Scorer:
    """Load a scorer from a transformers CLIPModel folder, in float32.

    Raises:
        InvalidInput: the CLIPModel, its safetensors weights, its tokenizer or its image processor cannot be loaded.
    """
    try:
        with unusable_weights("scorer"):
            model = load_clip(CLIPModel, Path(path), torch.float32)
        # Pillow's resampling, not torchvision's: scores must not depend on which packages are installed.
        images = CLIPImageProcessorPil.from_pretrained(path, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # transformers, tokenizers and torch each raise their own kinds
        raise InvalidInput(
            f"scorer could not be loaded: {(str(error).splitlines() or [type(error).__name__])[0]}",
            fix="give a transformers CLIPModel folder or Hub id, or `scorer: null`",
        ) from error
    model.to(device).eval().requires_grad_(False)
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
        prompts: N prompts without V*, such as "a mug on grass".
        references: the concept's reference images, or the result of `Scorer.prepare` for them.
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
    """Whether both scores reach their minimum, or None if no minimum is set."""
    minima = (settings.min_prompt_score, settings.min_identity_score)
    if minima == (None, None):
        return None
    bounds = [-math.inf if minimum is None else minimum for minimum in minima]
    return prompt >= bounds[0] and identity >= bounds[1]
