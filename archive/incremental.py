"""What is new in a source since the last scan: which files to open, which groups of files to plan again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from archive.containers import outer_of
from archive.linkage import GroupOutcome
from archive.plans import READER, Stamp
from archive.scan import is_unchanged
from archive.settings import Settings
from archive.walk import Listing, Seen

# Refusals that another try may undo without a change of the files; all else is remembered.
FLEETING = ("UNREADABLE", "UNEXPECTED")
CHUNK_FILES = 2000  # headers in memory while groups are planned, but for one group that is larger


@dataclass(frozen=True)
class Changes:
    """A source against its last scan. fresh: to be opened. kept: as they were, by path. gone: paths no longer there."""

    fresh: list[Seen]
    kept: dict[str, Stamp]
    gone: list[str]


def compare(listing: Listing, known: Mapping[str, Stamp]) -> Changes:
    """Which files of a listing are new or changed, and what of the known is no longer there.

    Files in an unchanged container are kept with it, and so are those of a folder that cannot be listed now.
    """
    fresh: list[Seen] = []
    kept: dict[str, Stamp] = {}
    for seen in listing.files:
        stamp = known.get(seen.path)
        if stamp is not None and is_unchanged(seen, stamp.size, stamp.mtime_ns, stamp.inode, stamp.reader):
            kept[seen.path] = stamp
        else:
            fresh.append(seen)
    opened = {seen.path for seen in fresh}
    containers = {path for path, stamp in kept.items() if stamp.kind == "container"}
    closed = tuple(path + "/" for path in listing.closed)
    gone = []
    for path, stamp in known.items():
        if path in kept or path in opened:
            continue
        if (containers and outer_of(path, containers)) or (closed and ("./" in closed or path.startswith(closed))):
            kept[path] = stamp
        else:
            gone.append(path)
    return Changes(fresh, kept, gone)


def settings_digest(settings: Settings) -> str:
    """16 hex over all settings that decide what can be read: what was refused under others is tried again."""
    limits = f"{settings.ingest.model_dump_json()}{settings.cluster.memory_limit}{settings.cluster.workers}{READER}"
    return hashlib.sha256(limits.encode()).hexdigest()[:16]


def is_done(outcome: GroupOutcome | None, stored: Mapping[str, str]) -> bool:
    """Whether a group need not be planned: each of its series is stored as its files are, or known to be refused."""
    return outcome is not None and all(
        one.refused is not None or stored.get(one.series) == one.fingerprint for one in outcome.series
    )


def groups_of(stamps: Mapping[str, Stamp]) -> dict[str, int]:
    """Groups in the order of their first paths, so that those of one container follow each other; files of each."""
    sizes: Counter[str] = Counter()
    for _, stamp in sorted(stamps.items()):
        if stamp.grouped:
            sizes[stamp.grouped] += 1
    return dict(sizes)


def bytes_of(stamps: Mapping[str, Stamp]) -> dict[str, int]:
    """Bytes of the files of each group."""
    sizes: Counter[str] = Counter()
    for stamp in stamps.values():
        sizes[stamp.grouped] += stamp.size
    return dict(sizes)


def chunks(groups: Iterable[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Groups cut into lists of at most CHUNK_FILES files."""
    chunk: list[str] = []
    files = 0
    for group in groups:
        if chunk and files + sizes[group] > CHUNK_FILES:
            yield chunk
            chunk, files = [], 0
        chunk.append(group)
        files += sizes[group]
    if chunk:
        yield chunk
