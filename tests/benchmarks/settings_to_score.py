"""Identity and background by training settings, on spriteworld identities that are in no training and no demo.

    python tests/benchmarks/settings_to_score.py --json settings_to_score.json
    python tests/benchmarks/settings_to_score.py --arms "demo 50" "new 50" --concepts 32

Every arm trains the same concepts with settings of its own, four references each on one background, and renders them
with LAG on other backgrounds; identity is measured against drawings of the concept on the requested background. Arms
after the first of their number of iterations are compared with it concept by concept. No time is measured, so the
machine need not be idle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from benchmark_json import argument_parser, print_json
from held_out import backgrounds_of, judge_residuals

from persres.core.base_model import BaseModel, load_base_model
from persres.core.latents import encode_references
from persres.core.residual import Residual
from persres.core.scoring.quality_scores import Scorer, load_scorer
from persres.core.training.residual_training import TrainedResidual, train_residuals
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingRequest
from persres.pipeline.models.names import SPRITEWORLD
from persres.pipeline.models.resolve import resolve_model
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.spriteworld import scorer_path
from persres.pipeline.spriteworld.demo_catalog import RUN_SPEC, demo_identities
from persres.pipeline.spriteworld.world import Identity, draw

DEMO: dict[str, Any] = {
    "learning_rate": 0.01,
    "initialization": "zero",
    "train_identifier": True,
    "identifier_learning_rate": 0.01,
}
DECAYING = DEMO | {"rank": 0.25, "schedule": "linear", "timesteps": "stratified", "identifier_learning_rate": 0.02}
NEW_25 = DECAYING | {"iterations": 25, "learning_rate": 0.06, "identifier_learning_rate": 0.03}
NEW_50 = DECAYING | {"iterations": 50, "learning_rate": 0.04}
NEW_150 = DECAYING | {"iterations": 150, "learning_rate": 0.03}
TOGETHER = {"schedule": "cosine", "rank": 0.125, "reference_order": "shuffled"}

ARMS: dict[str, dict[str, Any]] = {
    "demo 50": DEMO | {"iterations": 50},
    "new 50": NEW_50,
    "demo 25": DEMO | {"iterations": 25},
    "new 25": NEW_25,
    "demo 150": DEMO | {"iterations": 150},
    "new 150": NEW_150,
    "uniform 50": NEW_50 | {"timesteps": "uniform"},
    "shuffled 50": NEW_50 | {"reference_order": "shuffled"},
    "cosine 50": NEW_50 | {"schedule": "cosine"},
    "rank .5 50": NEW_50 | {"rank": 0.5},
    "rank .125 50": NEW_50 | {"rank": 0.125},
    "rank .05 50": NEW_50 | {"rank": 0.05},
    "together 50": NEW_50 | TOGETHER,
    "together 100": NEW_150 | TOGETHER | {"iterations": 100},
    "antithetic 50": NEW_50 | {"antithetic_noise": True},
    "Min-SNR 50": NEW_50 | {"min_snr_gamma": 5.0},
    "range .1-1 50": NEW_50 | {"timestep_range": (0.1, 1.0)},
    "range .3-1 50": NEW_50 | {"timestep_range": (0.3, 1.0)},
    "tail 10 50": NEW_50 | {"averaging": "tail", "averaging_iterations": 10},
    "constant .02 tail 20 50": NEW_50
    | {"schedule": "constant", "learning_rate": 0.02, "averaging": "tail", "averaging_iterations": 20},
    "decay in the last 20 50": NEW_50 | {"decay_iterations": 20, "learning_rate": 0.03},
    "warm-up 5 50": NEW_50 | {"warmup_iterations": 5},
    "clipped .1 50": NEW_50 | {"max_gradient_norm": 0.1},
    "lr .02 50": NEW_50 | {"learning_rate": 0.02},
    "lr .06 50": NEW_50 | {"learning_rate": 0.06},
    "V* .04 50": NEW_50 | {"identifier_learning_rate": 0.04},
    "lr .02 150": NEW_150 | {"learning_rate": 0.02},
    "shuffled 150": NEW_150 | {"reference_order": "shuffled"},
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--concepts", type=int, default=16, metavar="N")
    parser.add_argument("--prompts", type=int, default=2, metavar="N", help="of at most 4")
    parser.add_argument("--seed", type=int, default=13, metavar="N", help="of the identities; the demo's is 0")
    parser.add_argument("--pack-size", type=int, default=8, metavar="K")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = resolve_model(SPRITEWORLD, None, role="base_model")
    study = Study(
        load_base_model(found.path, name=SPRITEWORLD, revision=found.revision),
        load_scorer(scorer_path()),
        RunSpec.model_validate(yaml.safe_load(RUN_SPEC)),
        demo_identities(arguments.concepts, seed=arguments.seed),
        arguments.prompts,
        arguments.pack_size,
    )
    rows: list[dict[str, Any]] = []
    for row in study.run(arguments.arms):
        rows.append(row)
        print_json({"concepts": arguments.concepts, "prompts": arguments.prompts, "rows": rows}, arguments.json)


@dataclass(frozen=True, eq=False)
class Study:
    base: BaseModel
    scorer: Scorer
    spec: RunSpec
    who: Sequence[tuple[str, Identity]]
    prompts: int
    pack_size: int

    def run(self, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
        requests = [self.request(name, identity) for name, identity in self.who]
        first: dict[int, np.ndarray] = {}
        for arm in arms:
            settings = TrainingSettings.model_validate(ARMS[arm])
            scores = self.score(self.train(requests, settings))  # [concepts, 2]
            row = {"arm": arm, "iterations": settings.iterations, "settings": ARMS[arm]} | describe(scores)
            if settings.iterations in first:
                row["identity_gained"] = mean_and_interval(scores[:, 0] - first[settings.iterations][:, 0])
            first.setdefault(settings.iterations, scores)
            yield row

    def request(self, name: str, who: Identity) -> TrainingRequest:
        pictures = [draw(who, backgrounds_of(name)[0], f"settings/{name}/{number}")[0] for number in range(4)]
        return TrainingRequest(name, who.macro_class, 0, encode_references(self.base, pictures))

    def train(self, requests: Sequence[TrainingRequest], settings: TrainingSettings) -> dict[str, Residual]:
        residuals = {}
        for result in train_residuals(self.base, requests, settings, pack_size=self.pack_size):
            assert isinstance(result, TrainedResidual), result
            residuals[result.concept_id] = result.residual
        return residuals

    def score(self, residuals: Mapping[str, Residual]) -> np.ndarray:
        """Return every concept's mean identity and its share of right backgrounds, [concepts, 2]."""
        scores = judge_residuals(self.base, self.scorer, self.spec, self.who, residuals, self.prompts)
        return scores.mean(axis=1)[:, [0, 2]]


def describe(scores: np.ndarray) -> dict[str, Any]:
    return {"identity": mean_and_interval(scores[:, 0]), "background": round(float(scores[:, 1].mean()), 3)}


def mean_and_interval(values: np.ndarray) -> list[float]:
    """Return the mean and the half width of its 95% interval over concepts."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return [round(float(values.mean()), 3), round(float(half), 3)]


if __name__ == "__main__":
    main()
