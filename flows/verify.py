"""Verify: stored bytes against their manifests, certificates against what they are of."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from archive.verify import Checked
from flows.encode import NO_FILES
from flows.parameters import Overrides, WorkspacePath
from flows.recording import finish
from flows.staged import stage_flow, staged
from tasks.stage import Outcome, Stage, call
from tasks.verify import Verified, verify_stores

NAMED = 10

ReadData = Annotated[
    bool, Field(description="Read every byte and compare its sha256; else only sizes, or as voxbook.toml says.")
]
Sample = Annotated[
    float,
    Field(ge=0, le=1, description="Share of the stored versions, longest unchecked first; 0: as voxbook.toml says."),
]
Seconds = Annotated[
    float,
    Field(ge=0, description="Stop after this time, and the next run goes on from there; 0: as voxbook.toml says."),
]


@stage_flow("verify")
def verify(
    workspace: WorkspacePath,
    read_data: ReadData = False,
    sample: Sample = 0.0,
    max_seconds: Seconds = 0.0,
    settings: Overrides = [],
) -> Outcome:
    """Check volumes and codes; damage names its series and fails the run."""
    extra = ["verify.read_data=true"] if read_data else []
    extra += [f"verify.sample={sample}"] if sample else []
    extra += [f"verify.max_seconds={max_seconds}"] if max_seconds else []
    with staged("verify", workspace, [*settings, *extra]) as stage:
        limit = stage.settings.verify.max_seconds
        deadline = None if limit is None else time.time() + limit
        done = call(verify_stores, stage, deadline)
        versions = [_problem(item) for item in done.checked if item.code]
        models = _model_problems(stage, done.models.broken)
        # What no series points at, nobody reads: it is named, and neither fails a run nor counts as damage of it.
        problems = [problem for problem in (*versions, *models) if problem["current"]]
        idle = [problem for problem in versions if not problem["current"]]
        unused = [problem for problem in models if not problem["current"]]
        expired = sum(row.expired for row in stage.catalog.certificates())
        stage.reasons.update(problem["code"] for problem in problems)
        codes = Counter(problem["code"] for problem in problems)
        left = done.planned - len(done.checked)
        return finish(
            Outcome(
                verb="verify",
                run=stage.run,
                counts={
                    "checked": len(done.checked),
                    "left": left,
                    "damaged": codes["DAMAGED"],
                    "missing": codes["MISSING"],
                    "superseded_damaged": len(idle),
                    "models_left": done.models.left,
                    "expired": expired,
                    "seconds": stage.seconds,
                },
                reasons=dict(stage.reasons),
                sentence=_sentence(done, left, problems, idle, unused)
                + (f", {expired} certificates expired" if expired else ""),
                found=done.planned > 0,
                damaged=len(problems),
                problems=(*problems, *idle, *unused),
            ),
            stage,
        )


def _problem(item: Checked) -> dict[str, Any]:
    return {
        "series": item.series, "tier": item.tier, "version": item.version, "code": item.code, "current": item.current
    }  # fmt: skip


def _model_problems(stage: Stage, broken: Mapping[str, str]) -> list[dict[str, Any]]:
    """One for each series whose current codes a broken model made; one for the model itself where there is none."""
    if not broken:
        return []
    found = []
    named = defaultdict(list)
    for codes in stage.catalog.encodings(current_only=True):
        named[codes.model].append(codes.series)
    for row in stage.catalog.models():
        if row.model in broken:
            about = {"tier": "model", "group": row.group, "version": row.model, "code": broken[row.model]}
            series = named[row.model]
            found += [{"series": name, **about, "current": True, "hint": NO_FILES} for name in series]
            if not series:
                found.append({**about, "current": row.current, "hint": NO_FILES})
    return found


def _sentence(
    done: Verified,
    left: int,
    problems: list[dict[str, Any]],
    idle: list[dict[str, Any]],
    unused: list[dict[str, Any]],
) -> str:
    checked = f"{len(done.checked)} of {done.planned}" if left else str(len(done.checked))
    words = [f"verify: {checked} versions checked"]
    if left:
        words.append(f"{left} left for the next run")
    if done.models.left:
        words.append(f"{done.models.left} models not read")
    if problems:
        series = sorted({problem["series"] for problem in problems if "series" in problem})
        words.append(f"{len(problems)} damaged or missing" + (f", of series {_listed(series)}" if series else ""))
    if idle:
        words.append(f"{len(idle)} superseded ones damaged or missing (nobody reads them; voxbook gc removes them)")
    if unused:
        names = _listed(sorted(problem["version"][:12] for problem in unused))
        words.append(f"models {names} damaged or missing (no current codes need them)")
    if not (problems or idle or unused or left or done.models.left):
        words.append("all whole")
    elif not (problems or idle or unused) and done.checked:
        words.append("no damage found")
    lost = {problem["version"]: problem for problem in problems if problem["tier"] == "model"}
    return ", ".join(words) + "".join(
        f"; model {name[:12]} of {problem['group']} is damaged or gone: {problem['hint']}"
        for name, problem in lost.items()
    )


def _listed(series: list[str]) -> str:
    """The first of them by name, and how many more: the sentence of a run is read in a list of runs."""
    more = len(series) - NAMED
    return ", ".join(series[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
