"""Verbs about this machine: look at the data, check the installation, start and stop the Prefect server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.options import Json, Workspace


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command."""
    for verb in (init, doctor, up, down, serve):
        app.command(name=verb.__name__)(verb)


def init(
    workspace: Workspace,
    sources: Annotated[list[Path] | None, typer.Argument(metavar="[SOURCE]...", help="Folders to look at.")] = None,
    as_json: Json = False,
) -> None:
    """Look at the data and write a commented voxbook.toml.

    Example: voxbook init /data/archive -w ws
    """
    from flows.setup import initialise

    done = initialise(workspace, sources or [])
    if as_json:
        console.emit(done)
    else:
        sys.stdout.write(f"init: wrote {done['settings']}: {done['series']} series in {len(done['groups'])} groups\n")


def doctor(
    workspace: Annotated[Path | None, typer.Option("-w", "--workspace", help="Also check this workspace.")] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: versions that must fit together, codecs, torch and its device, disk, keys, the server.

    Example: voxbook doctor -w ws
    """
    from flows.doctor import checks

    findings = checks(workspace)
    if as_json:
        console.emit({"ok": all(finding.ok for finding in findings), "checks": [f.__dict__ for f in findings]})
    else:
        rows = [("ok" if f.ok else "LOOK", f.name, f.found, "" if f.ok else f.hint) for f in findings]
        console.table(("", "check", "found", "what to do"), rows)
    raise typer.Exit(console.OK if all(finding.ok for finding in findings) else console.USAGE)


def up(
    workspace: Workspace,
    port: Annotated[int, typer.Option("--port", help="Port of the Prefect server on 127.0.0.1.")] = 4200,
    as_json: Json = False,
) -> None:
    """Start a Prefect server on this machine and serve the deployments of a workspace.

    Example: voxbook up -w ws
    """
    from flows.server import start

    done = start(workspace, port)
    if as_json:
        console.emit(done)
    else:
        sys.stdout.write(f"up: {done['ui']} (data in {done['home']}); voxbook down ends it\n")


def down(as_json: Json = False) -> None:
    """End what `voxbook up` started.

    Example: voxbook down
    """
    from flows.server import stop

    ended = stop()
    if as_json:
        console.emit({"ended": ended})
    else:
        sys.stdout.write(f"down: {ended} processes ended\n" if ended else "down: nothing was running\n")


def serve(workspace: Workspace) -> None:
    """Serve the deployments of a workspace to the configured Prefect API, without a work pool, until interrupted.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api voxbook serve -w ws
    """
    from flows.deployments import serve_all

    serve_all(workspace)
