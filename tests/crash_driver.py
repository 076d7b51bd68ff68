"""Run as a program: in a fork for each fault point, commit, promote, check, collect and erase until it kills.

    python crash_driver.py BASE POINT...

BASE/POINT becomes a workspace; BASE/POINT.acks holds a line for every commit that was acknowledged, kept outside the
store so that the store cannot vouch for itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import store_samples

from archive.catalog import ModelRow
from archive.collect import collect
from archive.commit import FAULT
from archive.erase import erase
from archive.leases import Leases
from archive.linkage import GroupOutcome, Linkage
from archive.plans import FileEntry
from archive.verify import plan, record, verify_version
from model.source import as_source

OTHER = "b" * 32  # the series that is erased


def work(root: Path, acks: Path, point: str) -> None:
    """Version 1 in peace; then with the fault armed version 2, its codes, another model, a check, a gc, an erasure."""
    workspace = store_samples.encoded_workspace(root)
    catalog = workspace.catalog
    catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, store_samples.volume(seed=2), OTHER)])
    catalog.add_model(ModelRow("2" * 64, "mr", "tiny"))
    _acknowledge(acks, "volume", catalog.one(store_samples.SERIES).volume_version)
    leases = Leases(catalog, catalog.start_run("test"))
    os.environ[FAULT] = f"{point}:kill"
    leases.acquire([f"series:{store_samples.SERIES}"])
    _link(workspace.linkage)
    second = store_samples.volume(seed=1)
    commit = store_samples.volume_commit(workspace.volumes, second, fingerprint="f2")
    version = catalog.commit_volumes([commit])[0].version
    _acknowledge(acks, "volume", version)
    item = store_samples.codes(second, version)
    codes = store_samples.encoding_commit(workspace.codes, item, bounded=as_source(second))
    _acknowledge(acks, "codes", catalog.commit_encodings([codes])[0].version)
    leases.release([f"series:{store_samples.SERIES}"])
    catalog.promote("2" * 64)
    record(workspace, [verify_version(item, read_data=True) for item in plan(workspace, "codes")])
    collect(workspace, grace_seconds=0)
    erase(workspace, series=OTHER)


def _link(linkage: Linkage) -> None:
    """What an ingest writes there before the catalog knows of it; again where the killed one left it."""
    entry = FileEntry("a.dcm", 1, 2, 3, "dicom", header={"series": "1.2.3"}).filed()
    linkage.save_entries("source", [entry])
    linkage.save_series([], "source")
    linkage.save_outcomes("source", "settings", [GroupOutcome(entry.grouped, ())])


def _acknowledge(acks: Path, tier: str, version: str) -> None:
    with acks.open("a") as file:
        file.write(f"{tier} {version}\n")
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Fork once a point; print how each child ended (negative: the signal that killed it)."""
    base = Path(sys.argv[1])
    for point in sys.argv[2:]:
        child = os.fork()  # nothing here has started a thread yet, zarr's event loop included
        if child == 0:
            status = 1
            try:
                work(base / point, base / f"{point}.acks", point)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{point} {status}\n")


if __name__ == "__main__":
    main()
