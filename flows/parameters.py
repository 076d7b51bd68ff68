"""Parameters that several flows share; Prefect's run form shows their descriptions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

WorkspacePath = Annotated[str, Field(description="Folder of the workspace.")]
Overrides = Annotated[list[str], Field(description="Settings as KEY=VALUE, as in voxbook.toml (train.max_seconds=60).")]
Group = Annotated[str | None, Field(description="One group (ct, mr, pt, ...); none: every group.")]
SeriesIds = Annotated[list[str], Field(description="Series to work on, by pseudonym; none: all.")]
Where = Annotated[str | None, Field(description="Condition on the catalog: psnr < 38 and modality = CT.")]
ModelId = Annotated[str | None, Field(description="Model to encode with; none: the current one of each group.")]
