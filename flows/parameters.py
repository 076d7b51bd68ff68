"""Parameters that several flows share; Prefect's run form shows their descriptions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import Field

WorkspacePath = Annotated[
    str, Field(min_length=1, description="Folder of the workspace on the machine that runs this.")
]
Overrides = Annotated[list[str], Field(description="Settings as KEY=VALUE, as in voxbook.toml (train.max_seconds=60).")]
# Text and choices with a default, not unions with None: the run form shows those as a switch between types.
Group = Annotated[str, Field(description="One group (ct, mr, pt, ...); empty: every group.")]
SeriesIds = Annotated[list[str], Field(description="Series to work on, by pseudonym; none: all.")]
Where = Annotated[
    str,
    Field(
        description="Condition on the catalog: psnr < 38 and (modality = CT or group in (mr, pt)); empty: none. "
        "Fields: docs/again.md."
    ),
]
ModelId = Annotated[
    str, Field(description="Model to encode with, or the beginning of its id; empty: each group's current one.")
]
DryRun = Annotated[bool, Field(description="Only say what would be done.")]

Function = TypeVar("Function", bound=Callable[..., Any])


def described(function: Function) -> Function:
    """Put the descriptions of annotated parameters into the docstring, the only place where Prefect's run form looks."""
    lines = ["", "", "Args:"]
    for name, hint in get_type_hints(function, include_extras=True).items():
        descriptions = [found.description for found in getattr(hint, "__metadata__", ()) if found.description]
        lines += [f"    {name}: {text}" for text in descriptions]
    function.__doc__ = (inspect.getdoc(function) or "") + "\n".join(lines)
    return function
