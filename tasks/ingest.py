"""Ingest one source: read new headers, plan what changed, spread the reading over the cluster, write the catalog."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from archive.batches import Job, ingest_batch, look_batch, not_read
from archive.commit import STAGE
from archive.errors import InputError
from archive.incremental import FLEETING, bytes_of, chunks, compare, groups_of, is_done, settings_digest
from archive.ingest import IngestRecord
from archive.linkage import GroupOutcome, PlannedSeries
from archive.plans import Filed, FileEntry, Finding, SeriesPlan, Stamp
from archive.scan import plan, skipped_of
from archive.walk import Listing, Seen, survey
from tasks.cluster import cut
from tasks.progress import advance
from tasks.records import quarantine_row, volume_commit
from tasks.stage import Stage, recorded

logger = logging.getLogger("voxbook")

LOOK_FILES = 256  # headers in one batch of a worker
LOOK_HERE = 256  # new files at most that are looked at in this process: a worker takes longer to start


@dataclass(frozen=True)
class IngestCounts:
    """What one source gave; found = ingested + unchanged + quarantined (+ leased by another run)."""

    found: int = 0
    ingested: int = 0
    unchanged: int = 0
    quarantined: int = 0
    leased: int = 0
    skipped: int = 0
    bytes_in: int = 0
    voxels: int = 0

    def __add__(self, other: IngestCounts) -> IngestCounts:
        return IngestCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@recorded("ingest-source", "ingest {alias}")
def ingest_source(stage: Stage, alias: str) -> IngestCounts:
    """Bring the catalog and the volume store up to date with one source; what did not change is not opened."""
    linkage = stage.workspace.linkage
    try:
        listing = survey(linkage.path_of(alias), tuple(linkage.excluded(alias)))
    except InputError as error:  # an unmounted share must not keep the other sources from coming in
        return unreadable_source(stage, alias, error.code)
    stamps = read_new_headers(stage, alias, listing)
    source = Source(stage, alias, listing.folder, stamps)
    for path in listing.closed:
        source.refuse(path, "UNREADABLE")
    for path, stamp in stamps.items():
        if stamp.kind == "refused":
            source.refuse(path, stamp.note)
    work = partial(
        ingest_batch,
        volumes=stage.workspace.volumes,
        settings=stage.settings.ingest,
        groups=stage.settings.groups,
    )
    for done in stage.cluster.run(work, source.batches()):
        source.take(done.items, done.result)
        advance("ingest", source.ingested, len(source.series), "series")
    source.finish()
    skipped = skipped_of(stamps.values(), listing.skipped)
    return IngestCounts(
        found=source.ingested + source.unchanged + len(source.findings) + len(source.leased),
        ingested=source.ingested,
        unchanged=source.unchanged,
        quarantined=len(source.findings),
        leased=len(source.leased),
        skipped=sum(skipped.values()),
        bytes_in=source.bytes_in,
        voxels=source.voxels,
    )


def read_new_headers(stage: Stage, alias: str, listing: Listing) -> dict[str, Stamp]:
    """Open what is new or changed, keep it in the linkage, and return all that the source holds, by path."""
    linkage = stage.workspace.linkage
    changes = compare(listing, linkage.stamps(alias))
    if changes.gone:
        linkage.save_entries(alias, [], changes.gone)
    kept = changes.kept
    work = partial(
        look_batch,
        folder=listing.folder,
        exclude=tuple(linkage.excluded(alias)),
        settings=stage.settings.ingest,
        volumes=stage.workspace.volumes,
    )
    fresh = changes.fresh
    batches = [fresh[at : at + LOOK_FILES] for at in range(0, len(fresh), LOOK_FILES)]
    seen = 0
    few = len(fresh) <= LOOK_HERE
    for items, entries in ((batch, work(batch)) for batch in batches) if few else _spread(stage, work, batches):
        linkage.save_entries(alias, entries)
        kept.update((entry.path, entry.stamp()) for entry in entries)
        seen += len(items)
        advance("scan", seen, len(fresh), "files")
    return kept


def _spread(stage: Stage, work, batches: list[list[Seen]]) -> Iterator[tuple[Sequence[Seen], list[Filed]]]:
    for done in stage.cluster.run(work, batches):
        # A header that kills its worker is listed with its reason and not tried again while its file is unchanged.
        killed = [
            FileEntry(seen.path, seen.size, seen.mtime_ns, seen.inode, "refused", "WORKER_KILLED").filed()
            for seen in done.items
        ]
        yield done.items, killed if done.result is None else done.result


class Source:
    """One source while it is ingested: groups of files become batches of jobs, their records rows of the catalog."""

    def __init__(self, stage: Stage, alias: str, folder: Path, stamps: dict[str, Stamp]) -> None:
        self.stage = stage
        self.alias = alias
        self.origin = stage.workspace.linkage.origin(alias)
        self.folder = folder
        self.sizes = groups_of(stamps)
        self.bytes_of = bytes_of(stamps)
        self.findings: list[Finding] = []
        self.leased: set[str] = set()
        self.ingested = self.unchanged = self.bytes_in = self.voxels = 0
        self.series: dict[str, str] = {}  # all that the files make: series and its group
        self._outcomes: dict[str, GroupOutcome] = {}  # of the groups that were planned
        self._settings = settings_digest(stage.settings)

    def refuse(self, path: str, code: str) -> None:
        """A file that belongs to no series, and why."""
        self.findings.append(Finding(code, "file", self.stage.workspace.pseudonyms.file(self.origin, path), 1))

    def batches(self) -> Iterator[list[Job]]:
        """What has to be read, planned only as far as the cluster asks for it."""
        catalog, workers = self.stage.catalog, self.stage.cluster.workers
        known = self.stage.workspace.linkage.outcomes(self.alias, self._settings)
        stored = catalog.known_fingerprints(self.alias)
        todo = []
        for group in self.sizes:
            outcome = known.get(group)
            if outcome is not None and is_done(outcome, stored):
                self._account(outcome)
            else:
                todo.append(group)
        new_bytes = sum(self.bytes_of[group] for group in todo)
        limit = max(1, min(self.stage.settings.ingest.batch_bytes, -(-new_bytes // (4 * workers))))
        jobs = (job for chunk in chunks(todo, self.sizes) for job in self._jobs(chunk, known))
        return cut(jobs, lambda job: job.plan.source_bytes, limit)

    def _jobs(self, groups: Sequence[str], known: Mapping[str, GroupOutcome]) -> list[Job]:
        """Plan some groups and take the leases of what is to be read of them."""
        linkage, catalog = self.stage.workspace.linkage, self.stage.catalog
        stored = catalog.known_fingerprints(self.alias)
        rows = linkage.grouped(self.alias, groups)
        plans: list[SeriesPlan] = []
        for group in groups:
            made, outcome = self._plan(rows.get(group, []), group, known.get(group))
            plans += made
            self._outcomes[group] = outcome
            self._account(outcome)
        changed = [one for one in plans if stored.get(one.series) != one.fingerprint]
        granted = set(self.stage.leases.acquire(_lease(one) for one in changed)) if changed else set()
        self.leased.update(one.series for one in changed if _lease(one) not in granted)
        # Asked again under the leases: another run may have finished some of them meanwhile.
        stored = catalog.known_fingerprints(self.alias) if changed else stored
        todo = [one for one in changed if _lease(one) in granted and stored.get(one.series) != one.fingerprint]
        self.unchanged -= len({one.series for one in changed} & self.leased) + len(todo)
        # Before the catalog: a series in the catalog can always be led back. Stored ones too: a lost linkage is made anew.
        linkage.save_series((one for one in plans if one.series not in self.leased), self.alias)
        linkage.save_outcomes(self.alias, self._settings, (self._outcomes[group] for group in groups))
        digests = catalog.known_digests(one.series for one in todo)
        return [Job(one, digests.get(one.series)) for one in todo]

    def _plan(
        self, rows: Sequence[Filed], group: str, before: GroupOutcome | None
    ) -> tuple[list[SeriesPlan], GroupOutcome]:
        """Plans of one group, without those known to be refused, and its outcome."""
        entries = [row.entry() for row in rows]
        workspace = self.stage.workspace
        keys, settings, splits = workspace.pseudonyms, self.stage.settings.ingest, workspace.linkage.splits
        scratch = workspace.volumes / STAGE
        plans, findings = plan(entries, self.folder, self.origin, keys, settings, splits, scratch)
        # Planning computes the digests of duplicates' pixels; kept, they are not computed again.
        refiled = [now for row, entry in zip(rows, entries, strict=True) if (now := entry.filed()) != row]
        if refiled:
            workspace.linkage.save_entries(self.alias, refiled)
        refused = {one.series: one for one in before.series if one.refused} if before else {}
        series: list[PlannedSeries] = []
        for one in plans:
            old = refused.get(one.series)
            known = old is not None and old.fingerprint == one.fingerprint
            series.append(old if old is not None and known else PlannedSeries(one.series, one.fingerprint))
        outcome = GroupOutcome(group, tuple(series), tuple(findings))
        return [one for one, kept in zip(plans, series, strict=True) if kept.refused is None], outcome

    def _account(self, outcome: GroupOutcome) -> None:
        for one in outcome.series:
            self.series[one.series] = outcome.grouped
            self.unchanged += one.refused is None
            if one.refused is not None:
                self.findings.append(one.refused)
        self.findings += outcome.findings

    def take(self, jobs: Sequence[Job], records: Sequence[IngestRecord] | None) -> None:
        """Enter what a worker made of a batch; None: the worker died of it."""
        if records is None:
            records = [not_read(job.plan, "WORKER_KILLED") for job in jobs]
        good = [record for record in records if record.finding is None]
        self.stage.catalog.commit_volumes([volume_commit(record, self.alias) for record in good])
        refused = [record for record in records if record.finding is not None]
        self._remember(refused)
        self.findings += [record.finding for record in refused if record.finding is not None]
        self.stage.leases.release([f"series:{record.series}" for record in records])
        written = [record for record in good if record.committed is not None]
        self.ingested += len(written)
        self.unchanged += len(good) - len(written)
        self.bytes_in += sum(record.source_bytes for record in written)
        self.voxels += sum(math.prod(record.attributes["shape"]) for record in written)

    def _remember(self, records: Sequence[IngestRecord]) -> None:
        """Refused series are not read again while their files and the settings stay as they are."""
        lasting = {
            record.series: record for record in records if record.finding and record.finding.code not in FLEETING
        }
        groups = dict.fromkeys(self.series[name] for name in lasting)
        for group in groups:
            outcome = self._outcomes[group]
            series = tuple(
                replace(one, refused=lasting[one.series].finding) if one.series in lasting else one
                for one in outcome.series
            )
            self._outcomes[group] = replace(outcome, series=series)
        found = [self._outcomes[group] for group in groups]
        self.stage.workspace.linkage.save_outcomes(self.alias, self._settings, found)

    def finish(self) -> None:
        """Note what is still there, what is gone, and what was refused."""
        catalog = self.stage.catalog
        catalog.seen(self.series)
        here = set(self.series) | {finding.key for finding in self.findings}
        everything = catalog.series()
        mine = {row.series for row in everything if row.source == self.alias}
        left = set(catalog.unsee(self.alias, (mine | set(catalog.known_fingerprints(self.alias))) - here))
        gone = [row.series for row in everything if row.series in left and not row.reason]
        # of any source: what has gone from the one it came from last may well be in this one
        back = [row.series for row in everything if row.series in here and row.reason == "SOURCE_GONE"]
        catalog.set_reason(gone, "SOURCE_GONE")  # the volume stays
        catalog.set_reason(back, "")
        refused = [quarantine_row(finding, self.alias) for finding in self.findings]
        # What another run holds is that run's to judge: its rows stay as they are.
        known = {row.key for row in refused}
        refused += [row for row in catalog.quarantine(self.alias) if row.key in self.leased - known]
        catalog.set_quarantine(self.alias, refused, self.stage.run)
        self.stage.reasons.update(finding.code for finding in self.findings)


def _lease(plan: SeriesPlan) -> str:
    return f"series:{plan.series}"


def unreadable_source(stage: Stage, alias: str, code: str) -> IngestCounts:
    """A source that cannot be read at all is one quarantined item beside those it had."""
    finding = Finding(code=code, kind="file", key=stage.workspace.pseudonyms.file(alias, ""), files=0)
    kept = [row for row in stage.catalog.quarantine(alias) if row.key != finding.key]
    stage.catalog.set_quarantine(alias, [*kept, quarantine_row(finding, alias)], stage.run)
    stage.reasons[code] += 1
    return IngestCounts(found=1, quarantined=1)
