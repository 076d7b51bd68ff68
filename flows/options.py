"""Options that several verbs share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Workspace = Annotated[Path, typer.Option("-w", "--workspace", help="Folder of the workspace.", show_default=False)]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of voxbook.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Group = Annotated[str | None, typer.Option("--group", help="One group (ct, mr, pt, ...).")]
Series = Annotated[list[str], typer.Option("--series", help="One series, by pseudonym; may be repeated.")]
