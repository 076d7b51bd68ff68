"""What a Dask worker of test_archive_reasons runs instead of archive.batches.ingest_batch: it dies on one series."""

from __future__ import annotations

import os

from archive import batches

_REAL = batches.ingest_batch


def ingest_batch(batch, **options):
    """End the process without a word where the batch holds the folder a/."""
    if any("a/000.dcm" in repr(getattr(item, "plan", item).files) for item in batch):
        os._exit(9)
    return _REAL(batch, **options)
