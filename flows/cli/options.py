"""Options that several commands share."""

from typing import Annotated

import typer

DATA_ROOT = "./pyramid-data"

Root = Annotated[
    str,
    typer.Option(
        "--root", help="Folder or URI (s3://…) that holds tables, media and models.", rich_help_panel="Where and how"
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="Settings of all steps: demo, smoke, 384p, 768p, or the path of a YAML file.",
        rich_help_panel="Where and how",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a setting of the recipe; repeat for more.",
        rich_help_panel="Where and how",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Ray cluster: local, auto, ray://host:10001 or jobs:http://host:8265 (recipe: ray.address).",
        rich_help_panel="Where and how",
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Try rows again that failed in earlier runs.", rich_help_panel="Where and how"),
]
Source = Annotated[
    str,
    typer.Option(
        "--source",
        help="Folder of videos, list or annotation file, WebDataset shards, or one video; a path or URI.",
    ),
]
