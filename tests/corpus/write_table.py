"""Write docs/bad-inputs.md, a page of all bad inputs and their results, by running every one:

.venv/bin/python -m tests.corpus.write_table > docs/bad-inputs.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the Hub's client is imported, by the imports below

from persres.core.exit_codes import ExitCode

from .bad_input import BadInput, CaseResult
from .cases import KINDS, Corpus
from .sandbox import make_sandboxes

_HEAD = """# Bad inputs

{count} bad inputs, and how `persres-batch` answers each. `tests/corpus` makes them and runs them through
the real command line, and `python -m tests.corpus.write_table` writes this page from the output; a
test checks that it is up to date. Long messages are shortened here. No command leaves a commit.

| exit code | meaning |
|---|---|
{codes}
"""

_IMAGES = """## Images

`validate` reports all of them and exits with 2. `submit` exits with 3: each fails only its own
concept, with the same message (`tests/ray/test_bad_content.py`).
"""

_ODD_IMAGES = """## Odd images

These are accepted, with exit code 0. `validate` gives the warning.
"""

_LONGEST = 200


def page(corpus: Corpus) -> str:
    """The whole page."""
    images = list(corpus.images.values())
    cases = {kind: make() for kind, make in KINDS.items()}
    count = sum(map(len, cases.values())) + sum(image.expected != "" for image, _ in images)
    refused = [(image.name, result.message) for image, result in images if result.refused]
    accepted = [(image.name, result.message or "none") for image, result in images if not result.refused]
    codes = "\n".join(f"| {code.value} | {code.meaning} |" for code in ExitCode if code < ExitCode.INTERRUPTED)
    parts = [_HEAD.format(count=count, codes=codes)]
    for kind, of_kind in cases.items():
        rows = [row_of(case, corpus.result(kind, case)) for case in of_kind]
        parts += [f"## {kind}\n", *_table(("input", "exit code", "message"), rows)]
    parts += [_IMAGES, *_table(("input", "message"), map(_row, refused))]
    parts += [_ODD_IMAGES, *_table(("input", "warning"), map(_row, accepted))]
    return "\n".join(parts)


def row_of(case: BadInput, result: CaseResult) -> str:
    """The line of the page for a case."""
    return _row((case.name, str(result.code), result.message))


def _table(head: tuple[str, ...], rows: Iterable[str]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from rows
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join([*cells[:-1], _cell(cells[-1])])} |"


def _cell(message: str) -> str:
    """A message as Markdown, without the row at its beginning; a long reason or fix is shortened."""
    message = re.sub(r"^(warning: )?row \d+, (concept (bad|odd)-\d+, column )?", "", message)
    parts = [part if len(part) <= _LONGEST else f"{part[:_LONGEST].rstrip()} …" for part in message.split(" Fix: ")]
    return re.sub(r"([|*<>\[\]~])", r"\\\1", " Fix: ".join(parts))


def main() -> None:
    with make_sandboxes() as sandboxes:
        print(page(Corpus(sandboxes)), end="")


if __name__ == "__main__":
    main()
