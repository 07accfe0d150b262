"""Run specs that are not YAML, have invalid settings or contradict themselves: exit code 2."""

from __future__ import annotations

from collections.abc import Callable

from .bad_input import BadInput
from .sandbox import Sandbox


def _text(content: str | bytes) -> Callable[[Sandbox], list[str]]:
    return lambda sandbox: sandbox.submit(spec=sandbox.file("run.yaml", content))


def _with(line: str) -> Callable[[Sandbox], list[str]]:
    """A valid spec with one more line."""

    def set_up(sandbox: Sandbox) -> list[str]:
        valid = f"base_model: {sandbox.model}\nscorer: null\nreferences: {{min_side: 8}}\n"
        return sandbox.submit(spec=sandbox.file("run.yaml", f"{valid}{line}\n"))

    return set_up


def _folder(sandbox: Sandbox) -> list[str]:
    sandbox.path("folder.yaml").mkdir()
    return sandbox.submit(spec=sandbox.path("folder.yaml"))


def _missing(sandbox: Sandbox) -> list[str]:
    return sandbox.submit(spec=sandbox.path("none.yaml"))


def _image(sandbox: Sandbox) -> list[str]:
    return sandbox.submit(spec=sandbox.path("mug.png"))


def _endless(sandbox: Sandbox) -> list[str]:
    return sandbox.submit(spec="/dev/zero")


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def specs() -> list[BadInput]:
    """Every run spec of the corpus."""
    cases: list[tuple[str, Callable[[Sandbox], list[str]], tuple[str, ...]]] = [
        ("a missing spec", _missing, ("cannot be read",)),
        ("a folder instead of a spec", _folder, ("cannot be read",)),
        ("an endless spec", _endless, ("more than 1048576 bytes",)),
        ("an unknown setting", _with("training: {lerning_rate: 1e-3}"), ("did you mean 'learning_rate'?",)),
        ("an unknown section", _with("trainning: {iterations: 3}"), ("did you mean 'training'?",)),
        ("a number out of range", _with("training: {iterations: 0}"), ("training.iterations: 0", "[>= 1, <= 100000]")),
        ("text for a number", _with("sampling: {steps: many}"), ("sampling.steps: 'many'", "[>= 1, <= 1000]")),
        ("a learning rate that is not a number", _with("training: {learning_rate: .nan}"), ("learning_rate: nan",)),
        ("an infinite guidance scale", _with("sampling: {guidance_scale: .inf}"), ("guidance_scale: inf",)),
        ("an unknown scheduler", _with("sampling: {scheduler: euler}"), ("[ddim | dpmsolver++]",)),
        ("a list for a section", _with("sampling: [1, 2]"), ("sampling: [1, 2] is not accepted",)),
        ("a duplicate setting", _with("seed: 1\nseed: 2"), ("'seed' is given twice",)),
        ("a setting named by a number", _with("5: 1"), ("a setting's name must be a string",)),
        ("two errors at once", _with("seed: -1\nworkers: 0"), ("2 errors", "seed: -1", "workers: 0")),
        ("a prompt without {concept}", _with("prompts: [a mug]"), ("prompts[0] 'a mug'", "exactly once")),
        ("no prompts", _with("prompts: []"), ("prompts: []",)),
        ("a prompt of 20,000 characters", _with(f"prompts: ['{{concept}} {'m' * 20_000}']"), ("characters long",)),
        ("a prompt with a control character", _with('prompts: ["{concept} \\a"]'), ("control character",)),
        ("a prompt with a lone surrogate", _with('prompts: ["{concept} \\uD800"]'), ("a lone surrogate",)),
        ("an unknown color", _text("references: {matte_color: nocolour}"), ("references.matte_color",)),
        ("incomplete YAML", _text("seed: ["), ("not valid YAML",)),
        ("a tab as indentation", _text("training:\n\titerations: 3\n"), ("not valid YAML",)),
        ("bytes that are not text", _text(b"\xff\xfe\xff"), ("not valid YAML",)),
        ("an image instead of a spec", _image, ("not valid YAML",)),
        ("a list instead of settings", _text("- seed\n- 3\n"), ("expected settings",)),
        ("a Python object in YAML", _text("!!python/object/apply:os.getcwd []"), ("not valid YAML",)),
        ("an invalid date", _with("seed: 2026-99-99"), ("not valid YAML",)),
        ("a number of 5000 digits", _with(f"seed: {'9' * 5000}"), ("not valid YAML",)),
        ("100,000 nested brackets", _text("[" * 100_000), ("nested too deep",)),
        ("a YAML bomb of nested aliases", _text(_LAUGHS), ("there is no setting 'a'",)),
        ("a YAML bomb as a value", _text(_LAUGHS + "seed: *j\n"), ("seed: [[",)),
        ("a YAML bomb as the whole spec", _text("- &a [x, x]\n" + "".join(
            f"- &{n} [{', '.join([f'*{b}'] * 9)}]\n" for b, n in zip("abcdefghi", "bcdefghij", strict=True)
        )), ("expected settings",)),
        ("a V* of several tokens", _with("training: {identifier_token: xylophone}"), ("training.identifier_token",)),
        ("a revision of a folder", _with("revision: main"), ("has no revisions",)),
        ("a revision of a scorer that is null", _with("scorer_revision: main"), ("scorer_revision",)),
        ("a gate without a scorer", _with("scoring: {min_identity_score: 0.5}"), ("scoring.min_identity_score",)),
        ("early-stopping checks that do not divide the iterations", _with(
            "training: {iterations: 150, early_stopping: {check_every: 40}}"), ("not a multiple of",)),
        ("a height that is not a multiple of a latent's pixels", _with("sampling: {height: 17}"), ("sampling.height",)),
        ("a negative prompt longer than the text encoder reads", _with(
            f"sampling: {{negative_prompt: '{'on sand ' * 20}'}}"), ("sampling.negative_prompt",)),
    ]  # fmt: skip
    return [BadInput(name, set_up, 2, expected) for name, set_up, expected in cases]
