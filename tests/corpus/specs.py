"""Run specs that are no YAML, ask for what there is not, or contradict themselves: exit code 2."""

from __future__ import annotations

from collections.abc import Callable

from .bad_input import BadInput
from .workplace import Workplace


def _text(content: str | bytes) -> Callable[[Workplace], list[str]]:
    return lambda place: place.submit(spec=place.file("run.yaml", content))


def _with(line: str) -> Callable[[Workplace], list[str]]:
    """A sound spec with one more line."""

    def arrange(place: Workplace) -> list[str]:
        sound = f"base_model: {place.model}\nscorer: null\nreferences: {{min_side: 8}}\n"
        return place.submit(spec=place.file("run.yaml", f"{sound}{line}\n"))

    return arrange


def _folder(place: Workplace) -> list[str]:
    place.path("folder.yaml").mkdir()
    return place.submit(spec=place.path("folder.yaml"))


def _endless(place: Workplace) -> list[str]:
    return place.submit(spec="/dev/zero")


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def specs() -> list[BadInput]:
    """Every run spec of the corpus."""
    faults: list[tuple[str, Callable[[Workplace], list[str]], tuple[str, ...]]] = [
        ("a spec that is not there", lambda place: place.submit(spec=place.path("none.yaml")), ("cannot be read",)),
        ("a folder instead of a spec", _folder, ("cannot be read",)),
        ("a spec without an end", _endless, ("more than 1048576 bytes",)),
        ("an unknown setting", _with("training: {lerning_rate: 1e-3}"), ("did you mean 'learning_rate'?",)),
        ("an unknown section", _with("trainning: {iterations: 3}"), ("did you mean 'training'?",)),
        ("a number out of range", _with("training: {iterations: 0}"), ("training.iterations: 0", "[>= 1, <= 100000]")),
        ("text for a number", _with("sampling: {steps: many}"), ("sampling.steps: 'many'", "[>= 1, <= 1000]")),
        ("a learning rate that is not a number", _with("training: {learning_rate: .nan}"), ("learning_rate: nan",)),
        ("a guidance scale without bounds", _with("sampling: {guidance_scale: .inf}"), ("guidance_scale: inf",)),
        ("a scheduler that there is not", _with("sampling: {scheduler: euler}"), ("[ddim | dpmsolver++]",)),
        ("a list for a section", _with("sampling: [1, 2]"), ("sampling: [1, 2] is not accepted",)),
        ("a setting given twice", _with("seed: 1\nseed: 2"), ("'seed' is given twice",)),
        ("a setting that is a number", _with("5: 1"), ("a setting's name is a word",)),
        ("two faults at once", _with("seed: -1\nworkers: 0"), ("2 faults", "seed: -1", "workers: 0")),
        ("a prompt without {concept}", _with("prompts: [a mug]"), ("prompts[0] 'a mug'", "exactly once")),
        ("no prompts", _with("prompts: []"), ("prompts: []",)),
        ("a prompt of 20,000 characters", _with(f"prompts: ['{{concept}} {'m' * 20_000}']"), ("characters long",)),
        ("a prompt with a control character", _with('prompts: ["{concept} \\a"]'), ("control character",)),
        ("a prompt with half a character", _with('prompts: ["{concept} \\uD800"]'), ("half a character",)),
        ("a color that there is not", _text("references: {matte_color: nocolour}"), ("references.matte_color",)),
        ("YAML that does not end", _text("seed: ["), ("not valid YAML",)),
        ("a tab for an indent", _text("training:\n\titerations: 3\n"), ("not valid YAML",)),
        ("bytes that are no text", _text(b"\xff\xfe\xff"), ("not valid YAML",)),
        ("a picture instead of a spec", lambda place: place.submit(spec=place.path("mug.png")), ("not valid YAML",)),
        ("a list instead of settings", _text("- seed\n- 3\n"), ("expected settings",)),
        ("a Python object in YAML", _text("!!python/object/apply:os.getcwd []"), ("not valid YAML",)),
        ("a date that there is not", _with("seed: 2026-99-99"), ("not valid YAML",)),
        ("a number of 5000 digits", _with(f"seed: {'9' * 5000}"), ("not valid YAML",)),
        ("100,000 nested brackets", _text("[" * 100_000), ("nested too deep",)),
        ("a bomb: nine lists of nine, nine times over", _text(_LAUGHS), ("there is no setting 'a'",)),
        ("the same bomb as a value", _text(_LAUGHS + "seed: *j\n"), ("seed: [[",)),
        ("the same bomb as the whole spec", _text("- &a [x, x]\n" + "".join(
            f"- &{n} [{', '.join([f'*{b}'] * 9)}]\n" for b, n in zip("abcdefghi", "bcdefghij", strict=True)
        )), ("expected settings",)),
        ("a V* of several tokens", _with("training: {identifier_token: xylophone}"), ("training.identifier_token",)),
        ("a revision of a folder", _with("revision: main"), ("has no revisions",)),
        ("a revision of a scorer that there is not", _with("scorer_revision: main"), ("scorer_revision",)),
        ("a gate without a scorer", _with("scoring: {min_identity_score: 0.5}"), ("scoring.min_identity_score",)),
        ("checks that do not meet the end", _with(
            "training: {iterations: 150, early_stopping: {check_every: 40}}"), ("not a multiple of",)),
        ("a height that is no multiple of the latents'", _with("sampling: {height: 17}"), ("sampling.height",)),
        ("a negative prompt longer than the text encoder reads", _with(
            f"sampling: {{negative_prompt: '{'on sand ' * 20}'}}"), ("sampling.negative_prompt",)),
    ]  # fmt: skip
    return [BadInput(name, arrange, 2, says) for name, arrange, says in faults]
