"""What a look at the sources found: series by group, their sizes, and what suits each group."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from archive.geometry import Geometry
from archive.keys import Pseudonyms
from archive.plans import SeriesPlan
from archive.scan import scan

FLAT_RATIO = 2.0  # voxels longer than this along z gain nothing from a model of volumes
DEEP_SLICES = 32  # nor do stacks of fewer slices
MIXED_SHARE = 0.1  # a group with at least so many series of single slices is worth parting
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """One group of series as the scan plans them; names no source.

    modality: of most voxels. depth, spacing_ratio: medians of slices per time point and of slice by pixel spacing,
    None where headers do not say (NIfTI, pictures). single: series of one slice. manufacturers: series of each.
    """

    group: str
    modality: str
    channels: int
    series: int
    patients: int
    voxels: int
    source_bytes: int
    depth: float | None
    spacing_ratio: float | None
    single: int
    manufacturers: dict[str, int]
    plans: tuple[SeriesPlan, ...] = field(repr=False)

    @property
    def who(self) -> str:
        """How many patients, in words."""
        return f"{self.patients} patient{'s' if self.patients != 1 else ''}"

    @property
    def preset(self) -> str:
        """What `train` takes for the group when nobody says otherwise."""
        from model.config import preset_for

        return preset_for(self.modality, self.channels)

    def suggestions(self) -> list[str]:
        """Other presets and groups that may suit, each in a sentence; they are suggestions, not measurements."""
        from model.config import PRESETS

        said = []
        other = self.preset.replace("-2d", "-3d")
        deep = (self.depth or 0) >= DEEP_SLICES and 0 < (self.spacing_ratio or 0) <= FLAT_RATIO
        if deep and other != self.preset and other in PRESETS:
            said.append(
                f'{self.group}: slices are thin and many (median {self.depth:.0f}): preset = "{other}" codes them '
                f"together; train with each and compare PSNR at their bits per voxel (voxbook inspect)"
            )
        if MIXED_SHARE * self.series <= self.single < self.series:
            said.append(
                f"{self.group}: {self.single} of {self.series} series are single slices (localisers, scouts): they are "
                "encoded like the others; --exclude keeps their files out"
            )
        if len(self.manufacturers) > 1:
            said.append(
                f"{self.group}: {len(self.manufacturers)} makers of scanners: "
                'train.balance = ["site"] draws them alike where one outweighs the rest'
            )
        if self.patients < 3:
            said.append(
                f"{self.group}: {self.who}: too few to keep some out "
                "of training, so figures on held-out patients will say little"
            )
        return said


@dataclass(frozen=True)
class Survey:
    """All sources together. refused: series and files by reason code; skipped: files by class."""

    groups: tuple[Found, ...]
    refused: dict[str, int]
    skipped: dict[str, int]
    files: int
    bytes: int
    seconds: float


def look_at(sources: dict[str, Path], progress: Told | None = None) -> Survey:
    """Read every header below the sources (alias: path) once. Raises InputError UNREADABLE where one cannot be read."""
    pseudonyms = Pseudonyms.load()
    plans: list[SeriesPlan] = []
    refused, skipped = Counter[str](), Counter[str]()
    files = size = 0
    started = time.monotonic()
    for alias, path in sources.items():
        found = scan(path, alias=alias, pseudonyms=pseudonyms, progress=progress)
        plans += found.plans
        refused.update(finding.code for finding in found.findings)
        skipped.update(found.skipped)
        files += found.files
        size += found.bytes
    unique = {plan.series: plan for plan in plans}  # one series in two sources is one series
    groups = tuple(
        _found(name, [plan for plan in unique.values() if plan.group == name])
        for name in sorted({plan.group for plan in unique.values()})
    )
    return Survey(groups, dict(sorted(refused.items())), dict(skipped), files, size, time.monotonic() - started)


def _found(group: str, plans: list[SeriesPlan]) -> Found:
    voxels = Counter[str]()
    for plan in plans:
        voxels[plan.modality] += plan.voxels
    grids = [Geometry.from_dict(plan.details["geometry"]) for plan in plans if plan.details.get("geometry")]
    makers = Counter(str(plan.details.get("acquisition", {}).get("manufacturer", "")) for plan in plans)
    return Found(
        group=group,
        modality=voxels.most_common(1)[0][0],
        channels=3 if group.endswith("-rgb") else 1,
        series=len(plans),
        patients=len({plan.patient for plan in plans}),
        voxels=sum(voxels.values()),
        source_bytes=sum(plan.source_bytes for plan in plans),
        depth=_median(grid.shape[0] for grid in grids),
        spacing_ratio=_median(grid.spacing_mm[0] / grid.spacing_mm[2] for grid in grids if grid.spacing_mm[2] > 0),
        single=sum(grid.shape[0] == 1 for grid in grids),
        manufacturers={name: count for name, count in makers.items() if name},
        plans=tuple(plans),
    )


def _median(numbers: Iterable[float]) -> float | None:
    values = list(numbers)
    return statistics.median(values) if values else None
