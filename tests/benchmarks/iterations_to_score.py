"""The number of iterations a concept needs from a cold start, from its committed residual, and from its class's mean.

    python tests/benchmarks/iterations_to_score.py --json iterations_to_score.json

trains spriteworld identities that the base model never saw, and scores their LAG renderings against drawings on the
prompt's background, after different numbers of iterations:

    cold      from the seed, as a new concept
    refresh   from the residual of the same concept trained on other references on another background
    class     from the mean of the residuals of two other concepts of the same macro class, and their mean V*

It also shows where the early-stopping rule would have ended each cold training, by threshold. The settings are the
demo's. No time is measured, so the machine need not be idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import yaml
from benchmark_json import argument_parser, print_json
from held_out import backgrounds_of, judge_residuals

from persres.core.base_model import BaseModel, load_base_model
from persres.core.latents import encode_references
from persres.core.residual import Residual
from persres.core.scoring.quality_scores import Scorer, load_scorer
from persres.core.training.convergence import EarlyStopping, has_converged
from persres.core.training.training_pack import TrainingPack, TrainingRequest
from persres.pipeline.models.names import SPRITEWORLD
from persres.pipeline.models.resolve import resolve_model
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.spriteworld import scorer_path
from persres.pipeline.spriteworld.demo_catalog import RUN_SPEC, demo_identities
from persres.pipeline.spriteworld.world import Identity, draw

COLD = (0, 25, 50, 75, 100, 125, 150)
WARM = (0, 25, 50, 75)
THRESHOLDS = (0.3, 0.2, 0.1, 0.05, 0.02)
CHECK_EVERY = 10


@dataclass(frozen=True)
class Course:
    """One concept's training: its residual after some numbers of iterations, and its convergence losses."""

    residuals: Mapping[int, Residual]
    checks: Sequence[float]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--concepts", type=int, default=12, metavar="N", help="judged concepts")
    parser.add_argument("--pack-size", type=int, default=6, metavar="K")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = RunSpec.model_validate(yaml.safe_load(RUN_SPEC))
    found = resolve_model(SPRITEWORLD, None, role="base_model")
    study = Study(
        load_base_model(found.path, name=SPRITEWORLD, revision=found.revision),
        load_scorer(scorer_path()),
        spec,
        arguments.pack_size,
    )
    print_json(study.run(arguments.concepts), arguments.json)


@dataclass(frozen=True, eq=False)
class Study:
    base: BaseModel
    scorer: Scorer
    spec: RunSpec
    pack_size: int

    def run(self, concepts: int) -> dict[str, object]:
        # Twice as many identities: the second half gives the class means, and is not judged.
        everyone = demo_identities(2 * concepts, seed=11)
        judged, others = everyone[:concepts], everyone[concepts:]
        cold = self.train(judged, {}, COLD, home=0)
        before = self.train(judged, {}, (150,), home=1)
        refreshed = self.train(judged, {name: before[name].residuals[150] for name, _ in judged}, WARM, home=0)
        learned = self.train(others, {}, (150,), home=0)
        means = {
            kind: mean_residual([learned[name].residuals[150] for name, who in others if who.macro_class == kind])
            for kind in {who.macro_class for _, who in judged}
        }
        by_class = self.train(judged, {name: means[who.macro_class] for name, who in judged}, WARM, home=0)
        return {
            "concepts": concepts,
            "scores": {
                "cold": self.judge(judged, cold, COLD),
                "refresh": self.judge(judged, refreshed, WARM),
                "class": self.judge(judged, by_class, WARM),
            },
            "early_stopping": {
                str(threshold): [stops_at(cold[name].checks, threshold) for name, _ in judged]
                for threshold in THRESHOLDS
            },
        }

    def train(
        self, who: Sequence[tuple[str, Identity]], starts: Mapping[str, Residual], keep: Sequence[int], home: int
    ) -> dict[str, Course]:
        """Train concepts on four references each, on the concept's background number `home`."""
        courses: dict[str, Course] = {}
        for first in range(0, len(who), self.pack_size):
            members = who[first : first + self.pack_size]
            pack = TrainingPack(self.base, self.spec.training, self.pack_size)
            for slot, (name, identity) in enumerate(members):
                pack.load(slot, self.request(name, identity, starts.get(name), home))
            pack.pad()
            kept: dict[int, list[Residual]] = {}
            checks: list[list[float]] = []
            for iteration in range(max(keep) + 1):
                with pack.attached():
                    if iteration % CHECK_EVERY == 0:
                        checks.append(pack.convergence_losses())
                    if iteration in keep:
                        kept[iteration] = [pack.residual(slot) for slot in range(len(members))]
                    if iteration < max(keep):
                        pack.step()
            for slot, (name, _) in enumerate(members):
                courses[name] = Course({at: found[slot] for at, found in kept.items()}, [row[slot] for row in checks])
        return courses

    def request(self, name: str, who: Identity, start: Residual | None, home: int) -> TrainingRequest:
        background = backgrounds_of(name)[home]
        pictures = [draw(who, background, f"study/{home}/{name}/{number}")[0] for number in range(4)]
        return TrainingRequest(name, who.macro_class, 0, encode_references(self.base, pictures), start)

    def judge(
        self, who: Sequence[tuple[str, Identity]], courses: Mapping[str, Course], at: Sequence[int]
    ) -> dict[int, dict[str, float]]:
        return {
            iteration: self.score(who, {name: courses[name].residuals[iteration] for name, _ in who})
            for iteration in at
        }

    def score(self, who: Sequence[tuple[str, Identity]], residuals: Mapping[str, Residual]) -> dict[str, float]:
        """Return the mean identity and prompt scores and the share of right backgrounds, for four prompts a concept."""
        scores = judge_residuals(self.base, self.scorer, self.spec, who, residuals, prompts=4)
        identity, prompt, background = scores.mean(axis=(0, 1)).round(3).tolist()
        return {"identity": identity, "prompt": prompt, "background": background}


def mean_residual(residuals: Sequence[Residual]) -> Residual:
    """Return the residual of equal ranks that is nearest to the mean of dW = A B, with the mean V*."""
    ranks = residuals[0].ranks
    a, b = {}, {}
    for name, rank in ranks.items():
        u, s, v = torch.linalg.svd(torch.stack([one.a[name] @ one.b[name] for one in residuals]).mean(dim=0))
        root = s[:rank].sqrt()
        a[name], b[name] = u[:, :rank] * root, root[:, None] * v[:rank]
    return Residual(a, b, torch.stack([one.identifier for one in residuals if one.identifier is not None]).mean(dim=0))


def stops_at(checks: Sequence[float], threshold: float) -> int:
    """Return the iteration at which the rule ends a training with these losses, or the last one."""
    rule = EarlyStopping(check_every=CHECK_EVERY, threshold=threshold)
    for count in range(1, len(checks) + 1):
        if has_converged(checks[:count], rule):
            return (count - 1) * CHECK_EVERY
    return (len(checks) - 1) * CHECK_EVERY


if __name__ == "__main__":
    main()
