"""Train the judge: a small convolutional classifier that is used in evaluation only.

Shapes: images x_BCHW float [B, 3, 64, 64] in [-1, 1]; logits for class [B, 6], background [B, 8] and body colour
[B, 12].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..world import BACKGROUNDS, CLASSES, COLOURS
from . import trainer
from .dataset import Scenes, load_scenes
from .train_vae import encode, load_vae, to_tensor

STEPS = 1_000
BATCH = 48


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((3, 24), (24, 48), (48, 80), (80, 96)):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(96 * 16, sum(self.parts))

    parts = (len(CLASSES), len(BACKGROUNDS), len(COLOURS))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.head(self.body(x_BCHW).flatten(1)).split(self.parts, dim=1)
        return outputs[0], outputs[1], outputs[2]


def train_judge(steps: int = STEPS) -> None:
    """Train the judge and write `work/judge.pt`, unless it exists."""
    work = trainer.work_folder()
    if (work / "judge.pt").exists():
        return
    torch.manual_seed(43)
    scenes, decoded, decoded_facts = load_scenes(work, "train"), *_decoded(work)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    rng = np.random.default_rng(43)
    for step in range(steps):
        trainer.set_learning_rate(optimizer, trainer.learning_rate(step, steps, 2e-3, warm_up=50, hold=0.3))
        a, b = rng.integers(len(scenes.images), size=BATCH // 2), rng.integers(len(decoded), size=BATCH // 2)
        x = torch.cat([to_tensor(scenes.images[a]), decoded[b]])
        labels = torch.from_numpy(np.concatenate([scenes.labels[a], decoded_facts[b]])).long()
        outputs = judge(_augment(x, rng))
        loss = sum((F.cross_entropy(logits, labels[:, i]) for i, logits in enumerate(outputs)), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            trainer.log(f"judge step {step + 1}/{steps} loss {loss.item():.3f}")
    trainer.log(f"judge held-out accuracy {judge_accuracy(judge.eval(), load_scenes(work, 'held-out'))}")
    trainer.save_checkpoint(work / "judge.pt", judge.state_dict())


@torch.no_grad()
def _decoded(work: Path, count: int = 4_000) -> tuple[Tensor, np.ndarray]:
    """Return training images, encoded and decoded as the renderings that the judge classifies are, and their labels."""
    vae, scenes = load_vae(work), load_scenes(work, "train")
    means, _ = encode(vae, scenes.images[:count])
    return torch.cat([vae.decode(z).sample for z in means.split(64)]).clamp(-1, 1), np.array(scenes.labels[:count])  # type: ignore[union-attr]


def _augment(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Augment by small shifts, mirroring, blur and noise, so that the judge does not depend on single pixels."""
    dy, dx = (int(v) for v in rng.integers(-3, 4, size=2))
    x_BCHW = torch.roll(x_BCHW, (dy, dx), (2, 3))
    if rng.random() < 0.5:
        x_BCHW = x_BCHW.flip(3)
    if rng.random() < 0.3:
        x_BCHW = F.avg_pool2d(x_BCHW, 3, 1, 1)
    return x_BCHW + torch.from_numpy(rng.standard_normal(x_BCHW.shape, np.float32)) * float(rng.uniform(0, 0.1))


def load_judge(work: Path) -> Judge:
    judge = Judge()
    judge.load_state_dict(torch.load(work / "judge.pt", weights_only=True))
    return judge.eval()


@torch.no_grad()
def judge_accuracy(judge: Judge, scenes: Scenes) -> list[float]:
    """Return the shares of a split's images whose class, background and body colour the judge predicts."""
    outputs = judge(to_tensor(scenes.images[:]))
    labels = torch.from_numpy(np.array(scenes.labels)).long()
    return [round(float((logits.argmax(1) == labels[:, i]).float().mean()), 4) for i, logits in enumerate(outputs)]
