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
    item: Annotated[
        str | None,
        typer.Argument(metavar="[SERIES|MODEL|RUN|runs]", help="One series, model or run; runs: the last 20."),
    ] = None,
    uid: Annotated[str | None, typer.Option("--uid", help="The series of an original UID (reads the linkage).")] = None,
    reveal: Annotated[
        bool,
        typer.Option(
            "--reveal",
            help="Show original UIDs and files of a series, or the files behind a reason code; terminal only.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a workspace holds, or one series, model or run.

    Example: voxbook inspect -w ws 3f2a

    Example: voxbook inspect -w ws runs
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
    what: Annotated[
        list[str],
        typer.Argument(metavar="[SERIES] OUT", help="Pseudonym, or the beginning of it, and the target; see below."),
    ],
    tier: Annotated[str, typer.Option("--tier", help="codes, volume, or auto: codes that passed their gate.")] = "auto",
    levels: Annotated[int | None, typer.Option("--levels", min=1, help="Only the first N levels of the codes.")] = None,
    roi: Annotated[
        str | None, typer.Option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="A part of the grid, in voxels.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every series, into the folder OUT.")] = False,
    group: Group = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="CONDITION", help="As for encode: 'psnr < 38 and modality = CT'.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Of many: nifti (if nothing is said), dicom, ome-zarr or png.")
    ] = None,
    naming: Annotated[
        str | None, typer.Option("--naming", help="Of many: pseudonym (if nothing is said), or bids.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Of many: processes side by side; one per core as far as memory goes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give series back as volumes in their own geometry.

    One: SERIES OUT, where OUT is a name with .nii.gz, .nii, .ome.zarr or .png, or a new folder for DICOM. Many: OUT, a
    folder, with --all, --group or --where; a run that was ended goes on where it was.

    Example: voxbook decode -w ws 3f2a head.nii.gz --tier codes

    Example: voxbook decode -w ws --where 'modality = CT' cohort --naming bids
    """
    if tier not in ("auto", "codes", "volume"):
        raise ConfigError("BAD_USAGE", f"--tier is auto, codes or volume, not {tier!r}")
    many = everything or group is not None or where is not None
    if len(what) != (1 if many else 2):
        raise ConfigError("BAD_USAGE", "decode takes SERIES OUT, or OUT with --all, --group or --where")
    home = Home.open(workspace)
    if many:
        from flows.cohort import export_many

        with console.progress_bars(as_json):
            outcome = export_many(
                home,
                Path(what[0]),
                group=group,
                where=where,
                format=format or "nifti",  # type: ignore[arg-type]  # checked there
                naming=naming or "pseudonym",  # type: ignore[arg-type]
                tier=tier,  # type: ignore[arg-type]
                levels=levels,
                roi=roi,
                jobs=jobs,
            )
        raise typer.Exit(console.show_outcome(outcome, as_json))
    if (format, naming, jobs) != (None, None, None):
        raise ConfigError(
            "BAD_USAGE",
            "--format, --naming and --jobs are for many series",
            hint="the name of OUT chooses the format of one: .nii.gz, .nii, .ome.zarr, .png, or none for DICOM",
        )
    from flows.export import export

    done = export(home, what[0], Path(what[1]), tier, levels, roi)  # type: ignore[arg-type]
    if as_json:
        console.emit(done.as_dict())
    else:
        label = "lossless volume"
        if done.model is not None:
            kind = "lossless codes" if done.lossless else "codes"
            label = f"{kind} of model {done.model[:12]}, not for diagnostic use"
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
    from archive.erase import erase, marked_by

    if (series is None) == (patient is None):
        raise ConfigError("BAD_USAGE", "forget takes --series or --patient")
    if not yes:
        found = marked_by(Home.open(workspace), series, patient)
        typer.confirm(
            f"Erase {len(found.series)} series and {len(found.keys)} refused items for good?", abort=True, err=True
        )
    erased = erase(Home.open(workspace), series=series, patient=patient)
    words = (
        f"forget: {erased.series} series, {erased.refused} refused items, {erased.folders} folders, "
        f"{erased.reports} reports, {erased.exports} exports in the workspace erased"
    )
    _say(erased.__dict__, words, as_json)


def _say(data: dict[str, Any], words: str, as_json: bool) -> None:
    if as_json:
        console.emit(data)
    else:
        sys.stdout.write(f"{words}\n")
