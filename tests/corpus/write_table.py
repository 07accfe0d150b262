"""Write docs/bad-inputs.md, the page of all bad inputs and what becomes of them, by running every one:

.venv/bin/python -m tests.corpus.write_table > docs/bad-inputs.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the Hub's client is imported, which the following does

from .bad_input import BadInput, Ending
from .cases import KINDS, Corpus
from .workplace import workplaces

_HEAD = """# Bad inputs

What becomes of {count} bad inputs. Every one is made by code and run through the real command line (`tests/corpus`).
This page is written from what was printed (`python -m tests.corpus.write_table`), and a test keeps it true. Long
messages are cut here. None of these commands leaves a commit behind.

Exit codes: 0 done, 1 the store or the machine, 2 invalid input and nothing was started, 3 finished with failed
concepts, 4 the catalog is held by another run.
"""

_IMAGES = """## Images

`validate` names them all and exits with 2. `submit` exits with 3: each is the failure of its own concept, with the
same message, and the other concepts are done (`tests/ray/test_bad_content.py`).
"""

_ODD_IMAGES = """## Odd images

These are read, and end with exit code 0. What a person should know is a warning of `validate`.
"""

_LONGEST = 200


def page(corpus: Corpus) -> str:
    """The whole page."""
    images = list(corpus.images.values())
    cases = {kind: make() for kind, make in KINDS.items()}
    count = sum(map(len, cases.values())) + sum(image.says != "" for image, _ in images)
    refused = [(image.name, ending.message) for image, ending in images if ending.refused]
    read = [(image.name, ending.message or "read as it is") for image, ending in images if not ending.refused]
    parts = [_HEAD.format(count=count)]
    for kind, of_kind in cases.items():
        rows = [row_of(case, corpus.ending(kind, case)) for case in of_kind]
        parts += [f"## {kind}\n", *_table(("input", "exit code", "message"), rows)]
    parts += [_IMAGES, *_table(("input", "message"), map(_row, refused))]
    parts += [_ODD_IMAGES, *_table(("input", "what is said"), map(_row, read))]
    return "\n".join(parts)


def row_of(case: BadInput, ending: Ending) -> str:
    """The line of the page that tells how a case ended."""
    return _row((case.name, str(ending.code), ending.message))


def _table(head: tuple[str, ...], rows: Iterable[str]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from rows
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join([*cells[:-1], _cell(cells[-1])])} |"


def _cell(message: str) -> str:
    """A message as Markdown, without the place it names first; its reason and its fix cut where they are long."""
    message = re.sub(r"^(warning: )?row \d+, (concept (bad|odd)-\d+, column )?", "", message)
    parts = [part if len(part) <= _LONGEST else f"{part[:_LONGEST].rstrip()} …" for part in message.split(" Fix: ")]
    return re.sub(r"([|*<>\[\]~])", r"\\\1", " Fix: ".join(parts))


def main() -> None:
    with workplaces() as places:
        print(page(Corpus(places)), end="")


if __name__ == "__main__":
    main()
