"""Verbs about this machine: look at the data, check the installation, start and stop the Prefect server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.options import Json, Workspace

Limit = Annotated[int, typer.Option("--limit", min=1, help="Runs at a time; others wait.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command."""
    for verb in (init, doctor, view, up, down, serve):
        app.command(name=verb.__name__)(verb)


def init(
    workspace: Workspace,
    sources: Annotated[list[Path] | None, typer.Argument(metavar="[SOURCE]...", help="Folders to look at.")] = None,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Time one series per group, for the expected hours.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Look at the data and write a commented voxbook.toml: groups, presets, expected bytes and hours here.

    Nothing is ingested. Times are estimates from one series per group, read and encoded on this machine.

    Example: voxbook init /data/archive -w ws
    """
    from flows.setup import initialise, nothing_found, summary
    from tasks.progress import Step

    with console.progress_bars(quiet=as_json) as show:
        done = initialise(
            workspace,
            sources or [],
            timed=timed,
            notice=None if show or as_json else console.notice,
            progress=(lambda count, total: show(Step("look", count, total, "files"))) if show else None,
        )
    if as_json:
        console.emit(done)
        raise typer.Exit(console.NOTHING if sources and not done["series"] else console.OK)
    columns, rows, said = summary(done)
    if rows:
        console.table(columns, rows)
    console.say([*said, *([""] if said else [])])
    if done["reasons"]:
        console.reasons(done["reasons"])
    sys.stdout.write(f"init: wrote {done['settings']}: {done['series']} series in {len(done['groups'])} groups\n")
    if sources and not done["series"]:
        sys.stdout.write(f"{nothing_found(done)}\n")
        raise typer.Exit(console.NOTHING)
    sys.stdout.write("Next: read it, then voxbook ingest, train, encode with the same -w\n")


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


def view(
    workspace: Workspace,
    series: Annotated[str, typer.Argument(metavar="SERIES", help="Pseudonym, or the beginning of it.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 0,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show one series, original beside decoded, in a browser on this machine, until interrupted.

    The URL that is printed holds a token: whoever has it can see the series.

    Example: voxbook view -w ws 3f2a
    """
    from flows.viewer import view as serve_view

    def told(url: str, name: str) -> None:
        if as_json:
            console.emit({"series": name, "url": url})
        else:
            sys.stdout.write(f"view: {url} (Ctrl-C ends it; not for diagnostic use)\n")
        sys.stdout.flush()

    serve_view(workspace, series, port, browse, told)


def up(
    workspace: Workspace,
    port: Annotated[
        int,
        typer.Option(
            "--port", min=1, max=65534, help="Port of the Prefect server on 127.0.0.1; reports take the next."
        ),
    ] = 4200,
    limit: Limit = 1,
    outgoing: Annotated[
        bool, typer.Option("--outgoing", help="Let the server send requests to other machines (notifications).")
    ] = False,
    password: Annotated[
        bool, typer.Option("--password", help="Ask for a password, where other people use this machine too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a Prefect server on this machine and serve the deployments of a workspace.

    Reports are served on the next port, so that links from the UI open them. Nothing leaves the machine. Without
    --password everybody on this machine can open the UI and start runs as you.

    Example: voxbook up -w ws
    """
    from flows.server import start

    done = start(workspace, port, limit=limit, outgoing=outgoing, password=password)
    if as_json:
        console.emit(done)
        return
    sys.stdout.write(f"up: {done['ui']} (data in {done['home']}); voxbook down ends it\n")
    if "password" in done:
        sys.stdout.write(f"The page asks for a password: the line in {done['password']}, which only you can read\n")


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


def serve(
    workspace: Workspace,
    limit: Limit = 1,
    reports_port: Annotated[
        int | None,
        typer.Option("--reports-port", min=0, max=65535, help="Serve reports on this port of 127.0.0.1; 0: any."),
    ] = None,
) -> None:
    """Serve the deployments of a workspace to the configured Prefect API, without a work pool, until interrupted.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api voxbook serve -w ws
    """
    if os.environ.get("PREFECT_LOGGING_LEVEL") == "WARNING":  # ours, for a terminal; runs log what they do
        os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"
    from flows.deployments import serve_all

    serve_all(workspace, limit, reports_port)
