"""Which stored versions to check next, and checking one: plain functions that a worker process can run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
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
    """One checked version; no problems: it is as committed."""

    tier: str
    series: str
    version: str
    problems: tuple[Problem, ...]

    @property
    def code(self) -> str:
        """DAMAGED before MISSING; empty when all is well."""
        return min((problem.code for problem in self.problems), default="")


def plan(workspace: Workspace, tier: str, sample: float = 1.0) -> list[Check]:
    """Current versions of a tier to check, the longest unchecked first; sample: the share of them, at least one."""
    root = {"volume": workspace.volumes, "codes": workspace.codes}[tier]
    catalog = workspace.catalog
    rows: list[VersionRow] | list[EncodingRow] = (
        catalog.volumes_stored() if tier == "volume" else catalog.codes_stored()
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


def record(workspace: Workspace, checked: Iterable[Checked]) -> None:
    """Write what was found into the catalog, so that damaged versions are made again and the next run goes on."""
    found = {item.version: item.code for item in checked}
    fault_point("verify.checked")
    workspace.catalog.mark_checked(found)
    fault_point("verify.recorded")
