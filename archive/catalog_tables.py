"""The catalog's tables."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Integer, MetaData, Table, Text, UniqueConstraint

tables = MetaData()

meta = Table("meta", tables, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

sources = Table(
    "sources",
    tables,
    Column("alias", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("registered_at", Text, nullable=False),
)

series_table = Table(
    "series",
    tables,
    Column("series", Text, primary_key=True),
    Column("patient", Text, nullable=False, index=True),
    Column("grp", Text, key="group", nullable=False, index=True),
    Column("modality", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("reason", Text, nullable=False, default=""),
    Column("source", Text, nullable=False),
    Column("axes", Text, nullable=False),
    Column("shape", JSON, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("spacing_mm", JSON, nullable=False),
    Column("units", Text, nullable=False),
    Column("voxels", BigInteger, nullable=False),
    Column("volume_version", Text, nullable=False),
    Column("codes_version", Text),
    Column("first_seen", Text, nullable=False),
    Column("last_seen", Text, nullable=False),
)

versions = Table(
    "versions",
    tables,
    Column("version", Text, primary_key=True),
    Column("series", Text, nullable=False, index=True),
    Column("source", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("content_digest", Text, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("source_bytes", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("checked_at", Text),
    Column("superseded_at", Text),
    Column("damage", Text, nullable=False, default=""),
)

# Which version a source's files gave when they were last read: two sources may hold the same series.
sightings = Table(
    "sightings",
    tables,
    Column("source", Text, primary_key=True),
    Column("series", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
)

models = Table(
    "models",
    tables,
    Column("model", Text, primary_key=True),
    Column("grp", Text, key="group", nullable=False, index=True),
    Column("preset", Text, nullable=False),
    Column("train_key", Text, nullable=False, default=""),
    Column("current", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("summary", JSON, nullable=False),
)

encodings = Table(
    "encodings",
    tables,
    Column("version", Text, primary_key=True),
    Column("series", Text, nullable=False),
    Column("source_version", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("settings_digest", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("checked_at", Text),
    Column("superseded_at", Text),
    Column("damage", Text, nullable=False, default=""),
    UniqueConstraint("series", "source_version", "model", "settings_digest", name="one_encoding"),
)

certificates = Table(
    "certificates",
    tables,
    Column("version", Text, primary_key=True),
    Column("series", Text, nullable=False, index=True),
    Column("psnr", Float),
    Column("ssim", Float),
    Column("passed", Boolean, nullable=False),
    Column("data", JSON, nullable=False),
    Column("expired", Boolean, nullable=False, default=False),
    Column("created_at", Text, nullable=False),
)

quarantine = Table(
    "quarantine",
    tables,
    Column("source", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("code", Text, nullable=False, index=True),
    Column("files", Integer, nullable=False),
    Column("modality", Text, nullable=False, default=""),
    Column("numbers", JSON, nullable=False),
    Column("grp", Text, key="group", nullable=False, default=""),
    Column("first_seen", Text, nullable=False),
    Column("last_seen", Text, nullable=False),
    Column("run", Text, nullable=False),
)

runs = Table(
    "runs",
    tables,
    Column("run", Text, primary_key=True),
    Column("verb", Text, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("ended_at", Text),
    Column("state", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("counts", JSON, nullable=False),
)

leases = Table(
    "leases",
    tables,
    Column("resource", Text, primary_key=True),
    Column("run", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", Text, nullable=False),
    Column("heartbeat", Float, nullable=False),
)
