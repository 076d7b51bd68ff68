"""`voxbook repair`: codes whose bytes are damaged or gone are made again from the volumes, by the models they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archive.catalog_schema import CertificateRow, EncodingRow, ModelRow, SeriesRow
from archive.groups import regroup
from archive.verify import Checked
from archive.workspace import CONFIG, Workspace
from flows.encode import NO_FILES, encode
from model.config import ModelConfig
from tasks.encode import settings_digest
from tasks.promote import is_broken
from tasks.stage import Outcome, Stage, open_stage
from tasks.verify import verify_versions


@dataclass(frozen=True)
class Remake:
    """Series whose codes are made again in one go. model: empty for each group's current one; settings: overrides."""

    model: str = ""
    settings: tuple[str, ...] = ()
    series: list[str] = field(default_factory=list, compare=False)


def repair(root: Path, series: list[str], group: str | None, settings: list[str]) -> Outcome:
    """Check the current codes byte by byte and encode the series of damaged ones again, each as it was encoded before.

    The same model, profile and number of levels; series that are stale get the current model's codes. A damaged volume
    is not repaired here: its source holds the only other copy, and `ingest` reads it again. Nor is a model. Volumes
    that codes must be made from are read whole; of the others files and sizes are looked at, and what `verify` noted.
    """
    with open_stage("repair", root, settings) as stage:
        regroup(stage.workspace)  # as `encode` does, whose series would else be of another group than their model
        rows = {row.series: row for row in stage.catalog.series(series, group=group)}
        codes = verify_versions(stage, "codes", {row.codes_version for row in rows.values()}, read_data=True)
        noted = {row.series for row in stage.catalog.volumes_stored() if row.damage}
        suspects = {found.series for found in codes} | (noted & rows.keys())
        thorough = {rows[name].volume_version for name in suspects}
        others = {row.volume_version for row in rows.values()} - thorough
        volumes = verify_versions(stage, "volume", thorough, read_data=True)
        volumes += verify_versions(stage, "volume", others, read_data=False)
        models = _broken_models(stage, rows)
        # The catalog knows them as damaged now, so encode takes them for missing.
        broken = {found.series for found in codes} - {found.series for found in volumes}
        known = {name: {row.version for row in stage.catalog.encodings(name)} for name in broken}
        remakes = _remakes(stage, [rows[name] for name in sorted(broken)], {problem["version"] for problem in models})
        seconds, run = stage.seconds, stage.run
    done = [
        encode.fn(
            workspace=str(stage.workspace.root),
            series=remake.series,
            model=remake.model,
            settings=[*settings, *remake.settings],
        )
        for remake in remakes
    ]
    made, adopted = _became(stage.workspace, known)
    lost = [_problem(found, rows[found.series]) for found in volumes]
    reasons = Counter(problem["code"] for problem in models)
    for one in done:
        reasons.update(one.reasons)
    return Outcome(
        verb="repair",
        run=done[-1].run if done else run,
        counts={
            "series": len(rows),
            "repaired": made,
            "adopted": adopted,
            "to_ingest": len(lost),
            "models": len(models),
            "seconds": round(seconds + sum(one.counts["seconds"] for one in done), 3),
        },
        reasons=dict(reasons),
        sentence=_sentence(len(codes), made, adopted, lost, models),
        quarantined=sum(one.quarantined for one in done),
        below_gate=sum(one.below_gate for one in done),
        damaged=len(lost) + len(models) + sum(one.damaged for one in done),
        problems=(*lost, *models, *(problem for one in done for problem in one.problems)),
    )


def _remakes(stage: Stage, rows: Iterable[SeriesRow], broken_models: set[str]) -> list[Remake]:
    """How to make the broken codes of these series again; without those that only a broken model could make."""
    rows = list(rows)
    certificates = stage.catalog.certificates_of(row.series for row in rows)
    models = {model.model: model for model in stage.catalog.models()}
    found: dict[Remake, Remake] = {}
    for row in rows:
        assert row.codes_version is not None  # they were checked, and found broken
        codes = stage.catalog.encoding(row.codes_version)
        if row.state == "stale":
            current = stage.catalog.current_model(row.group)
            remake, by = Remake(), current.model if current else ""
        else:
            levels = _levels(stage, models[codes.model], codes, certificates[row.series])
            same = (f'encode.profile="{codes.profile}"', f"encode.levels={'none' if levels is None else levels}")
            remake, by = Remake(codes.model, same), codes.model
        if by not in broken_models:
            found.setdefault(remake, remake).series.append(row.series)
    return list(found.values())


def _levels(stage: Stage, model: ModelRow, codes: EncodingRow, certificate: CertificateRow) -> int | None:
    """`encode.levels` as it was when these codes were asked for; None: all of the model."""
    gate, configured = stage.settings.gate_of(model.group), stage.settings.encode.levels
    stored: int = certificate.data.get("rungs", [certificate.data])[0]["levels"]  # before its ladder was climbed
    for levels in (configured, None, stored):
        if settings_digest(codes.profile, levels, gate) == codes.settings_digest:
            return levels
    # Made under another gate, so the digest does not tell. Where all levels were stored, most likely none were named.
    own = stage.workspace.models / model.model / CONFIG
    every = ModelConfig.model_validate_json(own.read_bytes()).code_levels if own.is_file() else stored
    if stored == (every if configured is None else min(configured, every)):
        return configured
    return None if stored == every else stored


def _became(home: Workspace, known: dict[str, set[str]]) -> tuple[int, int]:
    """Of series whose codes were broken, how many have new ones, and how many point at others that were there already.

    known: per series the versions of before.
    """
    made = adopted = 0
    for row in home.catalog.series(known) if known else []:
        codes = home.catalog.encoding(row.codes_version) if row.codes_version else None
        if codes is not None and not codes.damage:
            made += codes.version not in known[row.series]
            adopted += codes.version in known[row.series]
    return made, adopted


def _broken_models(stage: Stage, rows: dict[str, SeriesRow]) -> list[dict[str, Any]]:
    """The models whose files are gone or broken, of those that these series' codes name or that would make new ones."""
    named = Counter(codes.model for codes in stage.catalog.encodings(current_only=True) if codes.series in rows)
    groups = {row.group for row in rows.values()}
    return [
        {
            "tier": "model",
            "group": model.group,
            "version": model.model,
            "code": "DAMAGED" if stage.workspace.has_model(model.model) else "MISSING",
            "series_count": named[model.model],
            "hint": NO_FILES,
        }
        for model in stage.catalog.models()
        if (named[model.model] or (model.current and model.group in groups)) and is_broken(stage, model)
    ]


def _sentence(codes: int, made: int, adopted: int, lost: list[dict[str, Any]], models: list[dict[str, Any]]) -> str:
    if not codes:
        words = "repair: no codes are damaged" if models else "repair: nothing new, all codes are whole"
    elif made or adopted:
        words = f"repair: codes of {made} of {codes} series made again"
        words += f", {adopted} pointed at codes that were there" if adopted else ""
    else:
        words = "repair: no codes could be made again"
    if lost:
        sources = ", ".join(sorted({problem["source"] for problem in lost}))
        words += f"; {len(lost)} volumes are damaged or gone: voxbook ingest reads them again from {sources}"
    for problem in models:
        words += f"; model {problem['version'][:12]} of {problem['group']} is damaged or gone: {problem['hint']}"
    return words


def _problem(found: Checked, row: SeriesRow) -> dict[str, Any]:
    return {
        "series": found.series, "tier": "volume", "version": found.version, "code": found.code, "source": row.source
    }  # fmt: skip
