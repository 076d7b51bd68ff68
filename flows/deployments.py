"""The deployments, in code: what `voxbook serve` serves and deployments/prefect.yaml must equal (a test holds it so)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

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

    def flow(self) -> Any:
        """The flow object."""
        return getattr(import_module(f"flows.{self.name}"), self.name)


DEPLOYMENTS = (
    Deployed("nightly", "Ingest what is new, encode it, verify a sample, report.", cron=NIGHTLY_CRON),
    Deployed("ingest", "Bring new and changed series of the sources into the volume store."),
    Deployed("train", "Train a VQ-VAE for one group or for each."),
    Deployed("encode", "Encode what is new, stale or asked for, with a certificate for every series."),
    Deployed("promote", "Make a model its group's current one, unless it is worse on the same series."),
    Deployed("gc", "Remove what no catalog row names, and superseded versions after their grace."),
    Deployed("verify", "Check stored volumes and codes against their manifests."),
    Deployed("report", "Write report.html and report.json."),
)


def serve_all(workspace: Path) -> None:
    """Serve every deployment for one workspace from this process until it is interrupted; one run at a time."""
    from prefect import serve

    from archive.workspace import Workspace

    root = str(Workspace.open(workspace, create=True).root)
    serve(
        *(
            deployed.flow().to_deployment(
                name=deployed.name,
                description=deployed.description,
                cron=deployed.cron,
                parameters={"workspace": root},
                tags=["voxbook"],
            )
            for deployed in DEPLOYMENTS
        ),
        limit=1,
    )
