"""The deployments, in code: what `voxbook serve` serves and deployments/prefect.yaml must equal (a test holds it so)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from archive.errors import ConfigError

NIGHTLY_CRON = "30 1 * * *"


@dataclass(frozen=True)
class Deployed:
    """One deployment: the flow it runs (module:function names alike) and its schedule, if any."""

    name: str
    description: str
    cron: str | None = None

    @property
    def entrypoint(self) -> str:
        """Module entrypoint: a file path would load flows/ingest.py as a module named `ingest`."""
        return f"flows.{self.name}.{self.name}"

    @property
    def tags(self) -> list[str]:
        """What the UI filters by."""
        return ["voxbook", self.name]

    def flow(self) -> Any:
        """The flow object."""
        return getattr(import_module(f"flows.{self.name}"), self.name)


DEPLOYMENTS = (
    Deployed("nightly", "Ingest what is new, encode it, verify a sample, report.", cron=NIGHTLY_CRON),
    Deployed("ingest", "Bring new and changed series of the sources into the volume store."),
    Deployed("train", "Train a VQ-VAE for one group or for each."),
    Deployed("encode", "Encode what is new, stale or asked for, with a certificate for every series."),
    Deployed("decode", "Write series as NIfTI, DICOM, OME-Zarr or pictures."),
    Deployed("promote", "Make a model its group's current one, unless it is worse on the same series."),
    Deployed("gc", "Remove what no catalog row names, and superseded versions after their grace."),
    Deployed("verify", "Check stored volumes and codes against their manifests."),
    Deployed("report", "Write report.html and report.json."),
)


def serve_all(workspace: Path, limit: int = 1, reports_port: int | None = None) -> None:
    """Serve every deployment for one workspace from this process until it is interrupted, `limit` runs at a time.

    reports_port: where on 127.0.0.1 runs' reports are served too, so that their links in the UI lead somewhere; 0: any
    free port; none: nowhere. Raises ConfigError BAD_USAGE where no API is configured.
    """
    from prefect import serve
    from prefect.settings import get_current_settings

    from archive.workspace import Workspace
    from flows.artifacts import REPORTS_URL
    from flows.report_server import serve_reports

    home = Workspace.open(workspace)
    if get_current_settings().api.url is None:
        raise ConfigError(
            "BAD_USAGE",
            "no Prefect API is configured",
            hint="set PREFECT_API_URL; voxbook up starts a server and serves",
        )
    if reports_port is not None:
        os.environ[REPORTS_URL] = serve_reports(home.reports, reports_port)  # for the runs, which are processes of ours
    serve(
        *(
            deployed.flow().to_deployment(
                name=deployed.name,
                description=deployed.description,
                cron=deployed.cron,
                parameters={"workspace": str(home.root)},
                tags=deployed.tags,
            )
            for deployed in DEPLOYMENTS
        ),
        limit=limit,
    )
