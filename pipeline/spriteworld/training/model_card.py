"""Write `weights/model_card.md`, with the measurements of evaluation.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_CARD = """\
# Spriteworld

A small text-to-image model of a drawn world, and a CLIP-like scorer for it. Both exist so that persres-batch can be
tried, tested and measured without a download: the code that runs on them is the code that runs on Stable Diffusion.

**What it draws.** One of six sprites (robot, fish, house, mug, car, tree) on one of eight backgrounds (grass, sand,
snow, night sky, checkered floor, brick wall, water, studio), 64x64. Body colours have twelve names, patterns five.

**What it is not.** It knows nothing outside this world and about seventy words; other words fall into letters that
mean nothing to it. It is no stand-in for the quality of a real model, and a method's score here is no score there.

## How it was made

From scratch, on two CPU cores, by the scripts in `persres/pipeline/spriteworld/training`; no picture, weight or text
comes from anywhere else. `python -m persres.pipeline.spriteworld.training.regenerate` draws the same data and trains by
the scripts' settings.
{provenance}
- `base/vae`: AutoencoderKL (16, 32, 64), 64x64x3 to 16x16x4, on {train_pictures} drawn pictures; then its decoder
  alone a little longer.
- `base/unet`, `base/text_encoder`: UNet (64, 96, 96) with seven target layers, CLIPTextModel of 2 layers of 128,
  together on {diffusion_samples} samples of the first {diffusion_pictures} of these pictures; v-prediction, zero
  terminal SNR.
- `base/tokenizer`: CLIPTokenizer of {vocabulary} tokens and 24 positions; each of the world's words is one token.
- `scorer`: CLIPModel (vision 4 layers of 128, text 2 of 64, 64 dimensions), on captions and on pairs of pictures of
  one identity.

A tenth of the captions are empty; six in ten of the rest name the body colour, two in ten carry one of twelve rare
words (`sks`, `zwx`, ...) that mean nothing. So a rare word reads as a neutral adjective: a good start for an
identifier token.

## How well it works

Guidance {guidance}, {inference_steps} steps, {scheduler}. Class, background and colour are judged by a separate small
classifier that took no part in training (right on unseen drawings: class {judge[0]}, background {judge[1]}, body
colour {judge[2]}). The prompts have the form of training captions; only the noise is new. Pictures for the
autoencoder and the scorer are of identities that no training saw and no setting was chosen on.

| measured | value |
|---|---|
| class right, of {renderings} renderings | {class_right} |
| background right | {background_right} |
| colour word: the judge's choice among six, of {colour_renderings} renderings | {colour_judge_of_six} |
| colour word: the nearest of six to the picture's middle | {colour_nearest_of_six} |
| share of colour variance that colour words explain | {colour_variance_explained} |
| autoencoder, peak signal-to-noise ratio on unseen pictures (dB) | {vae_psnr_db} |
| scorer, zero-shot class, over 48 captions | {scorer_class} |
| scorer, zero-shot background | {scorer_background} |
| scorer, cosine of one identity on two backgrounds | {scorer_same_identity} |
| scorer, cosine of two identities of one class on two backgrounds | {scorer_other_identity} |
| scorer, share of pictures nearer to their identity than to the mean other | {scorer_same_above_mean_other} |
| scorer, share nearer to it than to every other of the class | {scorer_same_above_every_other} |

License: Apache-2.0, as the rest of persres-batch.
"""

_SHIPPED = "86b54761689d3017"
_HISTORY = """
The weights of revision {revision} were not made in one pass of these settings, and no such pass has been run:

- Autoencoder: 3,600 steps were planned; from step 1,750 on the plan was 3,000.
- UNet and text encoder: 6,500 steps were planned, from step 1,800 on 6,000, and from step 3,600 on 7,600, because
  classes had only begun to separate. The rate had begun to fall at step 2,400 and went back up at step 3,600.
- Scorer: its first 1,000 steps had more identities of one class in a batch, more colours and patterns in the captions,
  and more weight on identity. Its zero-shot class accuracy on held-out pictures was then 0.80, so these settings were
  changed and 1,200 steps added. The numbers below are from other identities.
"""


def write_model_card(weights: Path, numbers: dict[str, Any]) -> None:
    """Write the model card with the numbers returned by `evaluate`. Only that of the shipped weights has a history."""
    revision = (weights / "REVISION").read_text().strip()
    history = _HISTORY.format(revision=revision) if revision == _SHIPPED else ""
    judge = numbers["judge_accuracy_class_background_colour"]
    (weights / "model_card.md").write_text(_CARD.format(**numbers, judge=judge, provenance=history))
