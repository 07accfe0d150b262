"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

ManifestArgument = Annotated[
    str, typer.Argument(metavar="MANIFEST", help="The manifest: a path or URI of a .parquet or .jsonl file.")
]
CatalogArgument = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog: a folder or URI.")]

SpecOption = Annotated[
    str | None,
    typer.Option(
        "--spec",
        metavar="RUN.YAML",
        help="The run spec. Default: run.yaml beside the manifest, else run.yaml in the current folder, else the "
        "default settings.",
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        metavar="URI",
        help="The catalog, which keeps residuals and renderings: a folder, or an s3://, gs:// or az:// URI. Default: "
        "the run spec's `catalog`, else mugs-catalog beside a manifest mugs.parquet.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The number of workers. Default: the run spec's; else one for each GPU, or up to two on CPU cores. On a "
        "cluster it grows as nodes join or its autoscaler may start them.",
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(
        help="The device of the workers. auto: GPUs if there are any, or if a cluster of `ray up` may start some. Give "
        "cuda for other clusters that start GPU nodes on demand, as on Kubernetes."
    ),
]
PruneOption = Annotated[
    bool,
    typer.Option(
        "--prune", help="At the end, forget the concepts that the manifest no longer lists, as `forget` does."
    ),
]
JobServerOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        help="The cluster's dashboard, such as http://127.0.0.1:8265. Default: RAY_ADDRESS, if it is a dashboard's.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
