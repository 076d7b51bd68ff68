"""The linkage's tables: sources and their paths, files, what planning made of them, and the originals of each series."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text

tables = MetaData()
meta = Table("linkage_meta", tables, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))
sources = Table(
    "linkage_sources",
    tables,
    Column("alias", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("exclude", JSON, nullable=False),
)
# One row per file, Filed's fields; the header, which most runs never look at, is one compressed blob.
files = Table(
    "linkage_entries",
    tables,
    Column("source", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("inode", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("reader", Integer, nullable=False),
    Column("grouped", Text, nullable=False, index=True),
    Column("series", Text, nullable=False, index=True),
    Column("patient", Text, nullable=False, index=True),
    Column("blob", LargeBinary),
)
# What planning and reading made of the files that belong together, so that unchanged ones are not planned again.
outcomes = Table(
    "linkage_outcomes",
    tables,
    Column("source", Text, primary_key=True),
    Column("grouped", Text, primary_key=True),
    Column("settings", Text, nullable=False),
    Column("outcome", Text, nullable=False),
)
series = Table(
    "linkage_series",
    tables,
    Column("series", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("identity", JSON, nullable=False),
    Column("first_identity", Text, nullable=False, index=True),
    Column("patient", Text, nullable=False, index=True),
    Column("patient_identity", JSON, nullable=False),
    Column("files", JSON, nullable=False),
)
