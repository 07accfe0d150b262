"""Draw docs/images/architecture.svg: the folders, who imports whom, and the path of a run, read from the sources.

.venv/bin/python -m tests.programs.draw_architecture

The folders of a floor stand in rows, each above all that it imports. An arrow that others imply is left out, and so are
arrows from floor to floor: a floor may import everything below it. The picture changes only when a folder or an arrow
between folders does, or a file of the path moves; `tests/architecture` compares it with the committed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from html import escape
from itertools import pairwise
from statistics import fmean

from ..support.import_graph import ROOT, find_circle, folder, imported_file, imports, sources

PICTURE = ROOT / "docs" / "images" / "architecture.svg"

FLOORS = {
    "jobs": "Ray, Typer, Rich",
    "pipeline": "pyarrow, fsspec; no Ray, no Typer",
    "core": "torch, diffusers; no storage, no cluster",
}
"""From the top down: each imports the ones below it."""

WHAT = {
    "jobs/cli": "commands, options",
    "jobs/submit.py": "one run, end to end",
    "jobs/cluster": "nodes, jobs, code",
    "jobs/driver": "shards to workers",
    "jobs/observe": "log, metrics, webhook",
    "jobs/schedule": "cron, systemd, KubeRay",
    "jobs/terminal": "all output",
    "pipeline/benchmark": "speed beside a peer",
    "pipeline/catalog": "records, index, lease",
    "pipeline/export.py": "files for other tools",
    "pipeline/maintenance": "gc, forget, verify",
    "pipeline/manifest": "rows and problems",
    "pipeline/models": "find, fetch, digest",
    "pipeline/personalize_shard.py": "the file to read first",
    "pipeline/planning": "fingerprints, plan, cost",
    "pipeline/references": "images in, bounded",
    "pipeline/run": "a run's documents",
    "pipeline/shard": "the stages of a shard",
    "pipeline/spec": "the run spec",
    "pipeline/spriteworld": "the embedded default",
    "pipeline/spriteworld/training": "how its weights are made",
    "pipeline/storage": "bytes, errors, retry",
    "core/images": "the one image decoder",
    "core/sampling": "LAG, images",
    "core/scoring": "CLIP scores, the gate",
    "core/weights": "do the weights fit",
    "core/training": "packs, convergence",
    "core": "concept, residual, model",
}

PATH = (
    ("jobs/cli/submit.py", "read the command and the run spec"),
    ("jobs/submit.py", "hold the catalog, plan, run, account"),
    ("pipeline/manifest/scan.py", "rows, and all their problems"),
    ("pipeline/references/images.py", "digests of the reference images"),
    ("pipeline/planning/fingerprint.py", "what determines each result"),
    ("pipeline/catalog/index.py", "what is committed already"),
    ("pipeline/planning/plan.py", "train, render only, current; shards"),
    ("jobs/driver/run_shards.py", "shards to workers, retries, splits"),
    ("jobs/driver/gpu_worker.py", "one model, one device"),
    ("pipeline/personalize_shard.py", "one shard, in stages:"),
    ("pipeline/shard/loading.py", "fetch and decode the references"),
    ("core/training/residual_training.py", "train a pack of residuals"),
    ("core/sampling/lag_sampling.py", "render, with and without LAG"),
    ("core/scoring/quality_scores.py", "score the renderings"),
    ("pipeline/shard/commit.py", "data first, the record last"),
    ("pipeline/run/report.py", "one page with pictures"),
)
"""The files that a run passes through, in order. `docs/architecture.md` has their functions."""

BOX_W, BOX_H, GAP_X, ROW_H = 164, 40, 12, 66
MARGIN, LABEL_H, LEGEND_W = 16, 40, 300
LANE_W = 10
"""The room that an arrow takes in a row which it crosses."""

STYLE = """
  text { font-family: -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2328; }
  .page { fill: #ffffff; stroke: #d0d7de; }
  .floor { fill: #f6f8fa; stroke: #d0d7de; }
  .box { fill: #ffffff; stroke: #57606a; }
  .name { font-size: 13px; font-weight: 600; }
  .what { font-size: 11px; }
  .title { font-size: 15px; font-weight: 600; }
  .file { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px; }
  .note, .what { fill: #57606a; }
  .note { font-size: 12px; }
  .arrow { fill: none; stroke: #8c959f; stroke-width: 1.2; }
  .head { fill: #8c959f; }
  .step { fill: #0969da; }
  .number { font-size: 10px; font-weight: 600; fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .page { fill: #0d1117; stroke: #30363d; }
    .floor { fill: #161b22; stroke: #30363d; }
    .box { fill: #0d1117; stroke: #7d8590; }
    .note, .what { fill: #9da7b3; }
    .arrow { stroke: #6e7681; }
    .head { fill: #6e7681; }
    .step { fill: #1f6feb; }
  }
"""


# -- reading the sources ---------------------------------------------------------------------------------------------


def arrows() -> dict[str, set[str]]:
    """Folder to the folders it imports, within its floor: {"pipeline/spec": {"pipeline/models", …}, …}.

    A file that lies directly in jobs/ or pipeline/ stands for itself if it imports a folder of its floor, such as
    jobs/submit.py. The others there (numbers with nouns, durations) are left out, since everything may import them.
    """
    found: dict[str, set[str]] = {folder(source): set() for source in sources()}
    for source in sources():
        targets = {folder(file) for one in imports(source) if (file := imported_file(one))}
        found[folder(source)] |= {target for target in targets if _floor(target) == _floor(source)}
    basics = {place for place in found if place.endswith(".py") and not found[place] & _folders(found)}
    for place in basics | (FLOORS.keys() - {"core"}):
        del found[place]
    return {place: targets & found.keys() - {place} for place, targets in found.items()}


def _folders(places: Iterable[str]) -> set[str]:
    return {place for place in places if not place.endswith(".py")}


def _floor(place: str) -> str:
    return place.split("/", 1)[0]


# -- placing the folders ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """One floor: places and arrows' lanes by row, the lowest row first, with the middle of each in x."""

    rows: list[list[str]]
    x: dict[str, float]
    edges: list[list[str]]  # an arrow: the places it touches and the lanes between them, from the importer down
    width: float


def lay_out(found: Mapping[str, set[str]]) -> Layout:
    """Rows by the longest chain of imports; arrows over several rows get a lane in each."""
    level = _levels(found)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for place in sorted(found):
        rows[level[place]].append(place)
    edges = []
    for place, target in _not_implied(found):
        between = [f"{place}>{target}@{row}" for row in range(level[place] - 1, level[target], -1)]
        for lane, row in zip(between, range(level[place] - 1, level[target], -1), strict=True):
            rows[row].append(lane)
        edges.append([place, *between, target])
    neighbours: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for edge in edges:
        for above, below in pairwise(edge):
            neighbours[above].append(below)
            neighbours[below].append(above)
    x = _settle(rows, neighbours)
    left = min(x[name] - _width(name) / 2 for name in x)
    width = max(x[name] + _width(name) / 2 for name in x) - left
    return Layout(rows, {name: x[name] - left for name in x}, edges, width)


def _levels(found: Mapping[str, set[str]]) -> dict[str, int]:
    """The length of the longest chain of imports below each place."""
    if circle := find_circle(found):
        raise ValueError(f"folders import each other in a circle: {' -> '.join(circle)}")
    level: dict[str, int] = {}
    for place in TopologicalSorter(found).static_order():
        level[place] = 1 + max((level[target] for target in found[place]), default=-1)
    return level


def _not_implied(found: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no longer way implies."""
    below: dict[str, set[str]] = {}
    for place in sorted(found, key=_levels(found).__getitem__):
        below[place] = set(found[place]).union(*(below[target] for target in found[place]))
    return [
        (place, target)
        for place in sorted(found)
        for target in sorted(found[place])
        if not any(target in below[other] for other in found[place])
    ]


def _settle(rows: list[list[str]], neighbours: Mapping[str, list[str]]) -> dict[str, float]:
    """Order and place each row by the mean of its neighbours, over and over: few crossings, short arrows."""
    x = {name: BOX_W * (index - (len(row) - 1) / 2) for row in rows for index, name in enumerate(row)}
    for sweep in range(24):
        for row in rows if sweep % 2 else reversed(rows):
            wish = {name: fmean(x[near] for near in neighbours[name] or [name]) for name in row}
            row.sort(key=lambda name: (round(wish[name], 3), name))
            _spread(row, wish, x)
    return x


def _spread(row: list[str], wish: Mapping[str, float], x: dict[str, float]) -> None:
    """Place each as near to its wish as the others of its row allow: halfway between pushing right and pushing left."""
    pushed: list[dict[str, float]] = []
    for names, sign in ((row, 1), (row[::-1], -1)):
        places, edge = {}, float("-inf")
        for name in names:
            places[name] = max(sign * wish[name], edge + _width(name) / 2)
            edge = places[name] + _width(name) / 2 + GAP_X
        pushed.append({name: sign * place for name, place in places.items()})
    for name in row:
        x[name] = fmean(places[name] for places in pushed)


def _width(name: str) -> float:
    return LANE_W if "@" in name else BOX_W


# -- drawing ---------------------------------------------------------------------------------------------------------


def drawing() -> str:
    """The picture, as SVG text: the same text for the same folders, arrows and path."""
    found = arrows()
    if unknown := sorted(found.keys() ^ WHAT.keys()):
        raise ValueError(f"{', '.join(unknown)}: say in WHAT what is in it, or take it out")
    if missing := [file for file, _ in PATH if not (ROOT / file).is_file()]:
        raise ValueError(f"{', '.join(missing)}: there is no such file; mend PATH")
    layouts = {floor: lay_out({place: to for place, to in found.items() if _floor(place) == floor}) for floor in FLOORS}
    width = max(layout.width for layout in layouts.values()) + 4 * GAP_X
    top, parts = float(MARGIN), []
    for floor, layout in layouts.items():
        height = LABEL_H + len(layout.rows) * ROW_H - BOX_H / 4
        parts += _floor_parts(floor, layout, top, width, height)
        top += height + MARGIN
    parts += _legend(width + 2.5 * MARGIN, MARGIN)
    full = width + 2.5 * MARGIN + LEGEND_W
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full:.0f} {top:.0f}" role="img"',
            '     aria-label="The folders of the three floors, which imports which, and the path of a run">',
            f"<style>{STYLE}</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{full - 1:.0f}" height="{top - 1:.0f}" rx="8"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _floor_parts(floor: str, layout: Layout, top: float, width: float, height: float) -> Iterator[str]:
    yield f'<rect class="floor" x="{MARGIN}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6"/>'
    yield f'<text class="title" x="{MARGIN + 12}" y="{top + 23:.0f}">{floor}/</text>'
    yield f'<text class="note" x="{MARGIN + 104}" y="{top + 23:.0f}">{escape(FLOORS[floor])}</text>'
    left = MARGIN + (width - layout.width) / 2
    last = len(layout.rows) - 1
    y = {name: top + LABEL_H + (last - row) * ROW_H for row, names in enumerate(layout.rows) for name in names}
    for edge in layout.edges:
        yield _arrow([(left + layout.x[name], y[name]) for name in edge])
    for name in sorted(name for names in layout.rows for name in names if "@" not in name):
        yield from _box(name, floor, left + layout.x[name], y[name])


def _arrow(points: list[tuple[float, float]]) -> str:
    """From the lower edge of the first place to the upper edge of the last, straight down through the lanes."""
    (x, y), *rest = points
    y += BOX_H
    path = [f"M{x:.0f} {y:.0f}"]
    for index, (next_x, next_y) in enumerate(rest):
        end = next_y - 5 if index == len(rest) - 1 else next_y
        middle = (y + end) / 2
        path.append(f"C{x:.0f} {middle:.0f} {next_x:.0f} {middle:.0f} {next_x:.0f} {end:.0f}")
        x, y = next_x, end
        if index < len(rest) - 1:
            y += BOX_H
            path.append(f"V{y:.0f}")
    head = f'<path class="head" d="M{x - 3.5:.1f} {y:.0f}H{x + 3.5:.1f}L{x:.1f} {y + 5:.0f}Z"/>'
    return f'<path class="arrow" d="{"".join(path)}"/>{head}'


def _box(place: str, floor: str, x: float, y: float) -> Iterator[str]:
    name = f"{floor}/*.py" if place == floor else place.removeprefix(f"{floor}/")
    yield (
        f'<rect class="box" x="{x - BOX_W / 2:.0f}" y="{y:.0f}" width="{BOX_W}" height="{BOX_H}" rx="5"/>'
        f'<text class="name" x="{x:.0f}" y="{y + 17:.0f}" text-anchor="middle">{escape(name)}</text>'
        f'<text class="what" x="{x:.0f}" y="{y + 32:.0f}" text-anchor="middle">{escape(WHAT[place])}</text>'
    )
    steps = [number for number, (file, _) in enumerate(PATH, start=1) if folder(file) == place]
    for index, number in enumerate(reversed(steps)):
        yield _step(number, x + BOX_W / 2 - 4 - 17 * index, y)


def _step(number: int, x: float, y: float) -> str:
    return (
        f'<circle class="step" cx="{x:.0f}" cy="{y:.0f}" r="8"/>'
        f'<text class="number" x="{x:.0f}" y="{y + 3.5:.1f}" text-anchor="middle">{number}</text>'
    )


def _legend(x: float, top: float) -> Iterator[str]:
    yield f'<text class="title" x="{x:.0f}" y="{top + 23:.0f}">The path of a run</text>'
    y = top + 54
    for number, (file, what) in enumerate(PATH, start=1):
        yield _step(number, x + 8, y)
        yield f'<text class="file" x="{x + 26:.0f}" y="{y + 4:.0f}">{escape(file)}</text>'
        yield f'<text class="note" x="{x + 26:.0f}" y="{y + 20:.0f}">{escape(what)}</text>'
        y += 45
    for line in (
        "An arrow points to what a folder imports.",
        "Arrows that others imply are left out.",
        "A floor may import all that is below it.",
    ):
        yield f'<text class="note" x="{x:.0f}" y="{y + 4:.0f}">{line}</text>'
        y += 18


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
