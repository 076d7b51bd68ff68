"""Damage stored files in every way that disks and people do, and count what `verify --read-data` finds and names.

    python benchmarks/damage.py --damages 2000 > damage.json

Claims: every damage is found, exactly the damaged versions are named, and `repair` makes damaged codes again. Beside
that it says what somebody who reads a damaged version without verifying would see. Exits 1 where a claim fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"


@dataclass(frozen=True)
class Version:
    """A stored version that counts. older: a superseded version of the same series and tier."""

    tier: str
    folder: Path
    older: Path

    def files(self) -> list[Path]:
        """Its files, by name."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


Undo = Callable[[], None]
Injury = Callable[[Version, Version, np.random.Generator], tuple[set[Path], Undo] | None]


def _rewritten(path: Path, data: bytes, version: Version) -> tuple[set[Path], Undo]:
    before = path.read_bytes()
    path.write_bytes(data)
    return {version.folder}, lambda: path.write_bytes(before) and None


def flip(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo]:
    """One bit of one file."""
    path = _any(one, rng)
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return _rewritten(path, bytes(data), one)


def cut(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo]:
    """The end of one file is missing."""
    path = _any(one, rng)
    data = path.read_bytes()
    return _rewritten(path, data[: rng.integers(1, len(data))], one)


def empty(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo]:
    """A file of no bytes."""
    return _rewritten(_any(one, rng), b"", one)


def delete(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo]:
    """A file is gone."""
    path = _any(one, rng)
    data = path.read_bytes()
    path.unlink()
    return {one.folder}, lambda: path.write_bytes(data) and None


def swap_files(one: Version, other: Version, rng: np.random.Generator) -> tuple[set[Path], Undo] | None:
    """Two files of one name in two versions trade places."""
    path = _any(one, rng)
    twin = other.folder / path.relative_to(one.folder)
    if one.folder == other.folder or not twin.exists() or twin.read_bytes() == path.read_bytes():
        return None
    return {one.folder, other.folder}, _swapped(path, twin)


def swap_inside(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo] | None:
    """Two files of one version trade places."""
    files = one.files()
    first, second = rng.choice(len(files), 2, replace=False)
    if files[first].read_bytes() == files[second].read_bytes():
        return None
    return {one.folder}, _swapped(files[first], files[second])


def swap_versions(one: Version, other: Version, _: np.random.Generator) -> tuple[set[Path], Undo] | None:
    """Two whole versions trade places."""
    if one.folder == other.folder or one.tier != other.tier:
        return None
    return {one.folder, other.folder}, _swapped(one.folder, other.folder)


def stale(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo]:
    """An older version of the series lies where the current one should, as after a restored backup."""
    return {one.folder, one.older}, _swapped(one.folder, one.older)  # both have rows, so both are named


def extra(one: Version, _: Version, rng: np.random.Generator) -> tuple[set[Path], Undo]:
    """A file that was never committed."""
    path = one.folder / f"c-{rng.integers(1000)}"
    path.write_bytes(b"\0")
    return {one.folder}, path.unlink


KINDS: tuple[Injury, ...] = (flip, cut, empty, delete, swap_files, swap_inside, swap_versions, stale, extra)


def _any(version: Version, rng: np.random.Generator) -> Path:
    files = version.files()
    return files[rng.integers(len(files))]


def _swapped(one: Path, other: Path) -> Undo:
    def trade() -> None:
        aside = one.with_name(f"{one.name}.aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)

    trade()
    return trade


def injure(workspace: Any, versions: list[Version], damages: int, rng: np.random.Generator) -> dict[str, Any]:
    """One damage after the other, each looked for in the whole archive and undone."""
    from archive.verify import plan, verify_version

    checks = [check for tier in ("volume", "codes") for check in plan(workspace, tier)]
    before = {version.folder: _read(version) for version in versions}
    done: Counter[str] = Counter()
    found: Counter[str] = Counter()
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    wrong = 0
    while sum(done.values()) < damages:
        kind = KINDS[int(rng.integers(len(KINDS)))]
        one, other = (versions[index] for index in rng.integers(len(versions), size=2))
        injured = kind(one, other, rng)
        if injured is None:
            continue
        expected, undo = injured
        named = {check.folder for check in checks if verify_version(check, read_data=True).code}
        done[kind.__name__] += 1
        found[kind.__name__] += expected <= named
        wrong += named != expected
        seen[kind.__name__][_noticed(one, before[one.folder])] += 1
        undo()
    clean = [check for check in checks if verify_version(check, read_data=True).code]
    return {
        "damages": sum(done.values()),
        "found": sum(found.values()),
        "not_exactly_named": wrong,
        "left_over": len(clean),
        "by_kind": {kind: {"damages": done[kind], "found": found[kind], "a reader": dict(seen[kind])} for kind in done},
    }


def _read(version: Version) -> bytes:
    from archive.codes import StoredCodes
    from archive.volumes import StoredVolume

    if version.tier == "codes":
        return StoredCodes(version.folder).read().array.tobytes()
    return np.ascontiguousarray(StoredVolume(version.folder).read().voxels).tobytes()


def _noticed(version: Version, before: bytes) -> str:
    """What a reader without a manifest would see."""
    try:
        return "reads the same" if _read(version) == before else "reads other values"
    except Exception as error:
        told = getattr(error, "code", "") in ("DAMAGED", "MISSING", "SCHEMA")
        return "is told" if told else f"gets {type(error).__name__}"


def verify_and_repair(place: Any, versions: list[Version], rng: np.random.Generator) -> dict[str, Any]:
    """The verbs: every codes version and one volume damaged at once, verified in short runs, repaired, verified."""
    from flows.repair import repair
    from flows.verify import verify

    codes = [version for version in versions if version.tier == "codes"]
    volume = next(version for version in versions if version.tier == "volume")
    for version in [*codes, volume]:
        flip(version, version, rng)
    settings = ["cluster=inline", "verify.read_data=true", "verify.sample=0.25"]
    runs = [verify.fn(workspace=str(place.root), settings=settings) for _ in range(4)]
    named = {problem["version"] for run in runs for problem in run.problems}
    mended = repair(place.root, [], None, place.settings("inline"))
    after = verify.fn(workspace=str(place.root), settings=["cluster=inline", "verify.read_data=true"])
    return {
        "verbs_named": len(named),
        "verbs_expected": len(codes) + 1,
        "repaired": mended.counts["repaired"],
        "to_ingest_again": [problem.get("series", problem["version"])[:8] for problem in mended.problems],
        "damaged_after_repair": [problem["tier"] for problem in after.problems],
    }


def run(series: int, damages: int, seed: int) -> dict[str, Any]:
    """Lay out an archive of twice encoded series in a temporary folder, and damage it."""
    from crash_drivers import Place, lay_out
    from scores import machine

    from archive.workspace import Workspace
    from flows.encode import encode
    from flows.ingest import ingest

    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="voxbook-damage-"))
    os.environ.setdefault("VOXBOOK_KEY", "a key for a benchmark that protects nothing")
    rng = np.random.default_rng(seed)
    try:
        place = Place(base)
        lay_out(place, series, rng)
        encode.fn(workspace=str(place.root), settings=place.settings("inline"))
        old = {row.series: row for row in Workspace.open(place.root).catalog.series()}
        place.next_round(rng, changed=series)
        ingest.fn(workspace=str(place.root), settings=place.settings("inline"))
        encode.fn(workspace=str(place.root), settings=place.settings("inline"))
        workspace = Workspace.open(place.root)
        versions = []
        for row in workspace.catalog.series():
            for tier, root, name in (
                ("volume", workspace.volumes, "volume_version"), ("codes", workspace.codes, "codes_version")
            ):  # fmt: skip
                here = root / row.series
                versions.append(Version(tier, here / getattr(row, name), here / getattr(old[row.series], name)))
        result = {"benchmark": "damage", "stored_versions": len(versions), **injure(workspace, versions, damages, rng)}
        result |= verify_and_repair(place, versions, rng)
        result["holds"] = (
            result["found"] == result["damages"]
            and result["not_exactly_named"] == result["left_over"] == 0
            and result["verbs_named"] == result["verbs_expected"]
            and len(result["to_ingest_again"]) == 1
            and result["damaged_after_repair"].count("codes") == 1  # those of the damaged volume
        )
        return {**result, "seconds": round(time.monotonic() - began, 1), **machine("zarr", "numcodecs")}
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main() -> None:
    """Parse, damage, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=12)
    parser.add_argument("--damages", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.series, arguments.damages, arguments.seed)
    print(json.dumps(result))
    rows = [f"{kind:14} {row['found']}/{row['damages']}  {row['a reader']}" for kind, row in result["by_kind"].items()]
    sys.stderr.write("\n".join(rows) + "\n")
    sys.exit(0 if result["holds"] else 1)


if __name__ == "__main__":
    main()
