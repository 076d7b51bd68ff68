"""Verbs that run a stage: a flow run where a Prefect API is configured, else the same body directly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from archive.errors import ConfigError, StoreError
from flows import console
from flows.options import Group, Json, Series, Set, Workspace


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command."""
    for verb in (ingest, train, select, encode, promote, gc, verify, report, nightly, demo):
        app.command(name=verb.__name__, no_args_is_help=verb is not demo)(verb)


def ingest(
    workspace: Workspace,
    sources: Annotated[list[Path] | None, typer.Argument(metavar="[SOURCE]...", help="Folders or files.")] = None,
    exclude: Annotated[
        list[str], typer.Option("--exclude", metavar="GLOB", help="Leave out of SOURCE, now and in later runs.")
    ] = [],
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Bring DICOM, NIfTI and pictures into the workspace; what cannot be read is listed with a reason.

    Without SOURCE: everything in [sources] and what was ingested before.

    Example: voxbook ingest /data/ct /data/mr --exclude '**/derived/**' -w ws
    """
    from archive.workspace import Workspace as Home
    from tasks.cluster import start_ahead

    if exclude and not sources:
        raise ConfigError("BAD_USAGE", "--exclude belongs to a SOURCE", hint="name the SOURCE again with its globs")
    missing = [number for number, path in enumerate(sources or [], 1) if not path.exists()]
    if missing:  # before a workspace is made
        raise ConfigError("BAD_USAGE", f"SOURCE number {missing[0]} does not exist", hint="check the path")
    home = Home.open(workspace, settings, create=bool(sources))
    before = {row.alias for row in home.catalog.sources()}
    aliases = [home.register_source(path, exclude=exclude or None) for path in sources or []]
    if set(aliases) - before:  # workers will be needed, and Prefect takes a second to import
        start_ahead(home.settings.cluster, "archive.batches")
    _run("ingest", as_json, workspace=str(workspace), sources=aliases, settings=settings)


def train(
    workspace: Workspace,
    group: Group = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Model preset; none: by modality.")] = None,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Train a VQ-VAE for each group that has volumes, or for one.

    Several GPUs of one machine: torchrun --nproc-per-node 4 -m flows.cli train -w ws

    Example: voxbook train -w ws --group ct --set train.max_seconds=600
    """
    _known_preset(preset)
    _known_group(workspace, group, settings)
    extra = [f'train.preset="{preset}"'] if preset else []
    parameters: dict[str, Any] = {"workspace": str(workspace), "group": group, "settings": [*settings, *extra]}
    if os.environ.get("RANK", "0") != "0":  # started by torchrun: the first rank runs the verb, the others help it
        from flows.train import follow
        from model.distributed import leave

        follow(**parameters)
        leave()
        return
    with console.lines(as_json):
        _run("train", as_json, **parameters)


def select(
    workspace: Workspace,
    group: Annotated[str, typer.Option("--group", help="The group to select for (ct, mr, pt, ...).")],
    sizes: Annotated[
        str | None, typer.Option("--sizes", metavar="N,N", help="Codebook sizes; none: 1/4, 1/2, 1 of the preset's.")
    ] = None,
    widths: Annotated[
        str | None, typer.Option("--widths", metavar="N,N", help="Widths; none: half and all of the preset's.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option("--levels", metavar="N,N", help="Residual levels; none: the preset's.")
    ] = None,
    downsamples: Annotated[
        str | None, typer.Option("--downsamples", metavar="ZxYxX,…", help="Voxels per code; none: the preset's.")
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds of patients.")] = 3,
    seconds_each: Annotated[
        float, typer.Option("--seconds-each", help="Seconds of a training of the last rung; earlier ones get less.")
    ] = 60.0,
    eta: Annotated[
        int,
        typer.Option("--eta", min=1, help="1/eta of the candidates go on, with eta times the time; 1: all in full."),
    ] = 2,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Seeds that the chosen one is trained with, to tell the spread.")
    ] = 3,
    write: Annotated[
        bool, typer.Option("--write", help="Write the chosen sizes to voxbook.toml, under [groups.NAME.train].")
    ] = False,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Choose codebook size, width, levels and downsampling of a group by patient-grouped cross-validation.

    Trains every candidate once per fold for a short time, the better half twice as long, and so on; of the last takes
    the fewest bits within one standard error of the best PSNR. A killed selection goes on where it was.

    Example: voxbook select -w ws --group ct --sizes 256,1024 --levels 1,2 --downsamples 1x8x8,1x4x4 --write
    """
    from flows.recording import run_stage
    from flows.select import numbers
    from flows.select import select as flow
    from flows.select_report import show

    _known_group(workspace, group, settings)
    with console.progress_bars():
        outcome = run_stage(
            flow,
            console.notice,
            workspace=str(workspace),
            group=group,
            sizes=numbers("--sizes", sizes),
            widths=numbers("--widths", widths),
            levels=numbers("--levels", levels),
            downsamples=[part for part in (downsamples or "").split(",") if part.strip()],
            fold_count=folds,
            seconds_each=seconds_each,
            eta=eta,
            seeds=seeds,
            write=write,
            settings=settings,
        )
    if not as_json:
        show(outcome.counts)
    raise typer.Exit(console.show_outcome(outcome, as_json))


def encode(
    workspace: Workspace,
    group: Group = None,
    series: Series = [],
    where: Annotated[
        str | None,
        typer.Option("--where", help="'psnr < 38 and (modality = CT or group in (mr, pt))'; fields: docs/again.md."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model id; none: each group's current one.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="exact or fast.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be encoded.")] = False,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Encode what is new or stale, with a certificate for every series.

    New versions are written beside the old; a reader has one or the other. Codes by a model that was named here count
    until the next promotion.

    Example: voxbook encode -w ws --where 'psnr < 38 and modality = CT' --model 8c1f
    """
    if profile not in (None, "exact", "fast"):
        raise ConfigError("BAD_USAGE", f"--profile is exact or fast, not {profile!r}")
    _known_group(workspace, group, settings)
    _run(
        "encode",
        as_json,
        workspace=str(workspace),
        group=group,
        series=series,
        where=where,
        model=model,
        profile=profile,
        dry_run=dry_run,
        settings=settings,
    )


def promote(
    workspace: Workspace,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model id, or the beginning of it.")],
    force: Annotated[bool, typer.Option("--force", help="Even a worse one; nothing is encoded to compare.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compare.")] = False,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Make a model the current one of its group, unless it is worse than the current one on the same series.

    Encodes a sample of the group with it where it has no codes yet. Exit code 5 where it is worse. Series that it has
    not encoded are stale until the next encode.

    Example: voxbook promote -w ws 8c1f
    """
    from flows.promote import promote as flow
    from flows.promote import table_of
    from flows.recording import run_stage

    with console.progress_bars():
        outcome = run_stage(
            flow,
            console.notice,
            workspace=str(workspace),
            model=model,
            force=force,
            dry_run=dry_run,
            settings=settings,
        )
    compared = outcome.counts["comparison"]
    if compared and not as_json:
        console.table(*table_of(compared), title="Worst first")
    raise typer.Exit(console.show_outcome(outcome, as_json))


def gc(
    workspace: Workspace,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="Superseded versions of each series that stay; none: gc.keep.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Remove what no catalog row names and no running process holds, and superseded versions after their grace.

    Whoever reads a superseded version has gc.grace_seconds from the first gc that sees it.

    Example: voxbook gc -w ws --keep 1 --dry-run
    """
    asked = -1 if keep is None else keep
    _run("gc", as_json, workspace=str(workspace), keep=asked, dry_run=dry_run, settings=settings)


def verify(
    workspace: Workspace,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte and compare its sha256.")] = False,
    sample: Annotated[float | None, typer.Option("--sample", help="Share of the versions, 0 to 1.")] = None,
    max_seconds: Annotated[float | None, typer.Option("--max-seconds", help="Stop after this time.")] = None,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Check stored volumes and codes against their manifests; damage exits 6 and names the series.

    Example: voxbook verify -w ws --read-data --sample 0.1
    """
    extra = ["verify.read_data=true"] if read_data else []
    extra += [f"verify.sample={sample}"] if sample is not None else []
    extra += [f"verify.max_seconds={max_seconds}"] if max_seconds is not None else []
    _run("verify", as_json, workspace=str(workspace), settings=[*settings, *extra])


def report(workspace: Workspace, settings: Set = [], as_json: Json = False) -> None:
    """Write report.html and report.json: what was done, the worst series first.

    Example: voxbook report -w ws
    """
    _run("report", as_json, workspace=str(workspace), settings=settings)


def nightly(workspace: Workspace, settings: Set = [], as_json: Json = False) -> None:
    """Ingest, encode, verify a sample, report: what the nightly schedule runs.

    Example: voxbook nightly -w ws
    """
    _run("nightly", as_json, workspace=str(workspace), settings=settings)


def demo(
    workspace: Annotated[Path, typer.Argument(metavar="[WS]", help="Folder of the workspace.")] = Path(
        "demo-workspace"
    ),
    source: Annotated[Path | None, typer.Option("--source", help="An archive of your own.")] = None,
    settings: Set = [],
    as_json: Json = False,
) -> None:
    """Run the whole job on an embedded sample archive: ingest, train, encode, verify, decode, report.

    Example: voxbook demo --source /data/archive my-workspace
    """
    from flows.demo import run_demo

    with console.progress_bars():
        code = run_demo(workspace, source, settings, as_json)
    raise typer.Exit(code)


def _run(verb: str, as_json: bool, **parameters: Any) -> None:
    from importlib import import_module

    from flows.recording import run_stage

    flow = getattr(import_module(f"flows.{verb}"), verb)
    with console.progress_bars():
        outcome = run_stage(flow, console.notice, **parameters)
    raise typer.Exit(console.show_outcome(outcome, as_json))


def _known_group(workspace: Path, group: str | None, settings: list[str]) -> None:
    if group is None:
        return
    from archive.workspace import Workspace as Home

    home = Home.open(workspace, settings)
    groups = sorted({row.group for row in home.catalog.series()} | home.settings.groups.keys())
    if groups and group not in groups:
        raise StoreError("NOT_FOUND", f"no group is called {group!r}", hint=f"this workspace has {', '.join(groups)}")


def _known_preset(preset: str | None) -> None:
    if preset is None:
        return
    import difflib

    from model.config import PRESETS

    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)
        raise ConfigError("BAD_USAGE", f"no preset is called {preset!r}", hint=f"the nearest is {near[0]!r}")
