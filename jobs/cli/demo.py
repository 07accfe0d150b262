"""The table that `persres-batch demo` ends with: does the residual help, and what does localizing it change?"""

from __future__ import annotations

from rich.table import Table
from transformers.utils import logging

from ...pipeline.spriteworld.training.judge_demo import judge_catalog

LABELS = {"base": "base model", "residual": "residual", "lag": "residual with LAG"}


def demo_table(catalog_uri: str, manifest_uri: str) -> Table:
    """Score the demo's catalog against what its concepts truly look like, one line a variant."""
    logging.disable_progress_bar()  # loading the scorer's few weights needs none
    table = Table(title="Means over all renderings; 1 is best", title_justify="left")
    table.add_column("")
    for name in ("identity", "prompt", "background right"):
        table.add_column(name, justify="right")
    for scores in judge_catalog(catalog_uri, manifest_uri):
        values = (scores.identity, scores.prompt, scores.background)
        table.add_row(LABELS.get(scores.variant, scores.variant), *(f"{value:.3f}" for value in values))
    return table
