"""Which stored versions to check next, and checking one: plain functions that a worker process can run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from archive.catalog import EncodingRow, VersionRow
from archive.commit import Manifest, check, digest_of, fault_point

if TYPE_CHECKING:
    from archive.workspace import Workspace


@dataclass(frozen=True)
class Check:
    """One version to check. tier: volume or codes; bytes: what reading it costs."""

    tier: str
    series: str
    version: str
    folder: Path
    manifest: Manifest = field(repr=False)
    manifest_digest: str
    bytes: int


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a version. code: MISSING or DAMAGED; files: how many are so."""

    code: str
    files: int


@dataclass(frozen=True)
class Checked:
    """One checked version; no problems: it is as committed. current: a series points at it, as far as `record` saw."""

    tier: str
    series: str
    version: str
    problems: tuple[Problem, ...]
    current: bool = True

    @property
    def code(self) -> str:
        """DAMAGED before MISSING; empty when all is well."""
        return min((problem.code for problem in self.problems), default="")


def plan(workspace: Workspace, tier: str, sample: float = 1.0) -> list[Check]:
    """Versions of a tier to check, the longest unchecked first; sample: the share of them, at least one.

    Superseded ones too, after current ones that are as long unchecked: `encode` and `promote` may point at them again.
    """
    root = {"volume": workspace.volumes, "codes": workspace.codes}[tier]
    catalog = workspace.catalog
    rows: list[VersionRow] | list[EncodingRow] = (
        catalog.volumes_stored(superseded=True) if tier == "volume" else catalog.codes_stored(superseded=True)
    )
    checks = [
        Check(
            tier=tier,
            series=row.series,
            version=row.version,
            folder=root / row.series / row.version,
            manifest=row.manifest,
            manifest_digest=row.manifest_digest,
            bytes=row.bytes,
        )
        for row in rows
    ]
    return checks[: math.ceil(len(checks) * sample)]


def verify_version(item: Check, read_data: bool) -> Checked:
    """Compare one version with its manifest, and the manifest with its own digest.

    read_data: read every byte and compare sha256; else only files and their sizes.
    """
    codes = check(item.folder, item.manifest, read_data)
    if digest_of(item.manifest) != item.manifest_digest:
        codes.append("DAMAGED")
    problems = tuple(Problem(code, codes.count(code)) for code in sorted(set(codes)))
    return Checked(item.tier, item.series, item.version, problems)


def record(workspace: Workspace, checked: Iterable[Checked]) -> list[Checked]:
    """Write what was found into the catalog, so that damaged versions are made again and the next run goes on.

    Returns it as the catalog has it now: a version whose row went meanwhile (`gc`, `forget`) is not missing.
    """
    checked = list(checked)
    fault_point("verify.checked")
    # Rows go before files, so whose files are seen gone without damage has no row by now.
    standing = workspace.catalog.standing(item.version for item in checked if item.code)
    found = [_as_it_stands(item, standing) if item.code else item for item in checked]
    workspace.catalog.mark_checked({item.version: item.code for item in found})
    fault_point("verify.recorded")
    return found


def _as_it_stands(item: Checked, standing: Mapping[str, bool]) -> Checked:
    if item.version not in standing:
        return replace(item, problems=(), current=False)
    return replace(item, current=standing[item.version])
