"""What must hold after kills: asked of the stores, the catalog and the ledger that was kept outside."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_drivers import Place


@dataclass
class Found:
    """Counts of what must not be, over all checks; words say what it was."""

    lost: int = 0
    unreadable: int = 0
    twice: int = 0
    orphan_bytes: int = 0
    absent: int = 0
    checks: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """All of them."""
        return self.lost + self.unreadable + self.twice + self.orphan_bytes + self.absent

    def __iadd__(self, other: Found) -> Found:
        for name in ("lost", "unreadable", "twice", "orphan_bytes", "absent", "checks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.words += other.words
        return self


def examine(place: Place) -> Found:
    """Look at everything; the archive must be at rest, encoded and collected."""
    from archive.workspace import Workspace

    workspace = Workspace.open(place.root)
    found = Found(checks=1)
    try:
        _readable(workspace, place, found)
        _acknowledged(workspace, place, found)
        _orphans(workspace, found)
    finally:
        workspace.close()
    return found


def _readable(workspace: Any, place: Place, found: Found) -> None:
    """Every file's series is there, encoded, its volume equal to the file, its codes whole and decodable."""
    import nibabel
    import numpy as np

    from archive.codes import StoredCodes
    from archive.commit import check, digest_of
    from archive.volumes import StoredVolume
    from model import decode_codes, load

    expected = {path.name: np.asanyarray(nibabel.load(path).dataobj).T for path in place.sources.iterdir()}
    rows = {row.series: row for row in workspace.catalog.series()}
    if len(rows) != len(expected):
        found.absent += abs(len(rows) - len(expected))
        found.words.append(f"{len(rows)} series of {len(expected)}")
    contents = {values.tobytes() for values in expected.values()}
    for row in rows.values():
        try:
            if row.state != "encoded":
                raise ValueError(f"state {row.state} {row.reason}")
            volume = StoredVolume(workspace.volumes / row.series / row.volume_version)
            if np.ascontiguousarray(volume.read().voxels).tobytes() not in contents:
                raise ValueError("not the voxels of any file")
            codes = StoredCodes(workspace.codes / row.series / row.codes_version).read()
            decode_codes(load(workspace.models / codes.model, codes.model), codes)
            for root, version in (
                (workspace.volumes, workspace.catalog.version(row.volume_version)),
                (workspace.codes, workspace.catalog.encoding(row.codes_version)),
            ):
                folder = root / row.series / version.version
                if check(folder, version.manifest, True) or digest_of(version.manifest) != version.manifest_digest:
                    raise ValueError("not as its manifest says")
        except Exception as error:
            found.unreadable += 1
            found.words.append(f"{row.series[:8]}: {type(error).__name__} {error}")


def _acknowledged(workspace: Any, place: Place, found: Found) -> None:
    """What was acknowledged has its row, or something committed later took its place; nothing was encoded twice."""
    catalog = workspace.catalog
    rows = {row.series: row for row in catalog.series()}
    named = {(series, version) for _, series, version in catalog.referenced_versions()}
    made = {row.version: row.created_at for row in [*catalog.volumes_stored(), *catalog.codes_stored()]}
    keys: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for line in place.ledger.read_text().splitlines() if place.ledger.exists() else ():
        entry = json.loads(line)
        if entry["tier"] == "codes" and entry["status"] in ("encoded", "quality_failed"):
            keys[tuple(entry["key"])].add(entry["version"])
        if not entry["version"] or (entry["series"], entry["version"]) in named:
            continue
        row = rows.get(entry["series"])
        current = row and (row.volume_version if entry["tier"] == "volume" else row.codes_version)
        if not current or made[current] < entry["began"]:
            found.lost += 1
            found.words.append(f"{entry['tier']} {entry['version']} acknowledged and gone")
    twice = [key for key, versions in keys.items() if len(versions) > 1]
    found.twice += len(twice)
    found.words += [f"encoded twice: {key[0][:8]}" for key in twice]


def _orphans(workspace: Any, found: Found) -> None:
    """Bytes that lie in a store and that no row names."""
    catalog = workspace.catalog
    named = {
        (workspace.volumes if tier == "volume" else workspace.codes) / series / version
        for tier, series, version in catalog.referenced_versions()
    }
    named |= {workspace.models / row.model for row in catalog.models()}
    done = {row.train_key[:16] for row in catalog.models() if row.train_key}
    over = [path for path in workspace.training.glob("*") if path.name.rpartition("-")[2] in done]
    for root in (workspace.volumes, workspace.codes, workspace.models, *over):  # other trainings may be gone on with
        for path in root.rglob("*") if root.exists() else ():
            if path.is_file() and not named & set(path.parents):
                found.orphan_bytes += max(1, path.stat().st_size)
                found.words.append(f"orphan {path.relative_to(workspace.root)}")


def points(home: Path) -> list[str]:
    """Every named fault point of the code, but those of exports, which no driver makes (tests/test_archive_exported.py)."""
    import re

    folders = [path for name in ("archive", "model", "tasks", "flows") for path in (home / name).glob("*.py")]
    calls = (re.findall(r'fault_point\("([^"]+)"\)', path.read_text()) for path in folders)
    return sorted({point for found in calls for point in found if not point.startswith("export.")})
