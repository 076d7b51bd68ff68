"""Verbs that answer or act at once, without Prefect: inspect, decode, repair, forget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from archive.errors import ConfigError
from archive.workspace import Workspace as Home
from flows import console
from flows.options import Group, Json, Series, Set, Workspace


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command."""
    for verb in (inspect, decode, repair, forget):
        app.command(name=verb.__name__, no_args_is_help=True)(verb)


def inspect(
    workspace: Workspace,
    item: Annotated[str | None, typer.Argument(metavar="[SERIES|MODEL]", help="One series or model.")] = None,
    uid: Annotated[str | None, typer.Option("--uid", help="The series of an original UID (reads the linkage).")] = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Show original UIDs and source; on a terminal only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a workspace holds, or one series or model.

    Example: voxbook inspect -w ws 3f2a
    """
    from flows import inspection

    home = Home.open(workspace)
    if uid is not None:
        item = inspection.find_uid(home, uid)
    if reveal:
        if not sys.stdout.isatty() or as_json:
            raise ConfigError("BAD_USAGE", "--reveal shows identifiers and works on a terminal only")
        inspection.show_identity(home, item)
        return
    data = inspection.describe(home, item)
    if as_json:
        console.emit(data)
    else:
        inspection.show(data)


def decode(
    workspace: Workspace,
    series: Annotated[str, typer.Argument(metavar="SERIES", help="Pseudonym, or the beginning of it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".nii.gz, .nii, .zarr, or a new folder for DICOM.")],
    tier: Annotated[str, typer.Option("--tier", help="codes, volume, or auto: codes that passed their gate.")] = "auto",
    levels: Annotated[int | None, typer.Option("--levels", min=1, help="Only the first N levels of the codes.")] = None,
    as_json: Json = False,
) -> None:
    """Give one series back as a volume in its own geometry.

    Example: voxbook decode -w ws 3f2a head.nii.gz --tier codes
    """
    if tier not in ("auto", "codes", "volume"):
        raise ConfigError("BAD_USAGE", f"--tier is auto, codes or volume, not {tier!r}")
    from flows.export import export

    done = export(Home.open(workspace), series, out, tier, levels)  # type: ignore[arg-type]
    if as_json:
        console.emit(done.as_dict())
    else:
        label = "lossless volume" if done.model is None else f"codes of model {done.model[:12]}, not for diagnostic use"
        sys.stdout.write(f"decode: {'x'.join(map(str, done.shape))} {done.dtype} in {done.units}, from {label}\n")


def repair(
    workspace: Workspace,
    series: Series = [],
    group: Group = None,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Make damaged or missing codes again from the volumes.

    Example: voxbook repair -w ws
    """
    from flows.repair import repair as run

    outcome = run(workspace, series, group, settings)
    raise typer.Exit(console.show_outcome(outcome, as_json))


def forget(
    workspace: Workspace,
    series: Annotated[str | None, typer.Option("--series", help="One series, by pseudonym.")] = None,
    patient: Annotated[str | None, typer.Option("--patient", help="One patient, by pseudonym.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a series or a patient: volumes, codes, certificates, linkage and the reports that show them.

    Example: voxbook forget -w ws --patient 5d07
    """
    from archive.erase import erase

    if (series is None) == (patient is None):
        raise ConfigError("BAD_USAGE", "forget takes --series or --patient")
    if not yes:
        typer.confirm("Erase for good?", abort=True, err=True)
    erased = erase(Home.open(workspace), series=series, patient=patient)
    words = (
        f"forget: {erased.series} series, {erased.refused} refused items, {erased.folders} folders, "
        f"{erased.reports} reports erased"
    )
    _say(erased.__dict__, words, as_json)


def _say(data: dict[str, Any], words: str, as_json: bool) -> None:
    if as_json:
        console.emit(data)
    else:
        sys.stdout.write(f"{words}\n")
