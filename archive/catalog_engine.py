"""Open a database so that what it acknowledges survives: SQLite with WAL and full syncs, or any PostgreSQL."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, MetaData, Table, create_engine, event, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError

from archive.catalog_schema import damaged
from archive.errors import ConfigError, StoreError, TransientError
from archive.mounts import on_network

# At DEBUG SQLAlchemy logs the rows it reads, and those of the linkage are names; a root logger at DEBUG must not do it.
logging.getLogger("sqlalchemy").setLevel(logging.WARNING)

log = logging.getLogger("voxbook")

BUSY_SECONDS = 30
_LOCK = 0x766F78626F6F6B  # "voxbook"


def open_database(url: str | URL) -> Engine:
    """An engine whose writing transactions follow one another, in this process and in all others.

    SQLite: file made 0600, WAL, synchronous=FULL, foreign keys, BEGIN IMMEDIATE for writes, 30 s of patience.
    PostgreSQL: an advisory lock for writes. Raises ConfigError NETWORK_FS, BAD_VALUE; StoreError NOT_WRITABLE.
    """
    try:
        parsed = make_url(url)
        dialect = parsed.get_backend_name()
    except ArgumentError:
        raise ConfigError("BAD_VALUE", "database is not an SQLAlchemy URL") from None
    if dialect == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigError("BAD_VALUE", "an SQLite database must be a file: sqlite:////path/catalog.sqlite")
        _make_file(Path(parsed.database))
        engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
        event.listen(engine, "connect", _set_up_sqlite)
    elif dialect == "postgresql":
        try:
            engine = create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
        except (ImportError, NoSuchModuleError):
            raise ConfigError(
                "BAD_VALUE", "no driver for this database", hint="pip install voxbook[postgres]"
            ) from None
    else:
        raise ConfigError("BAD_VALUE", f"database may be sqlite or postgresql, not {dialect}")
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database throughout."""
    with _classified(engine), engine.connect() as connection:
        isolation = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
        with connection.execution_options(**isolation).begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """The only writing transaction of all processes; rolled back on any exception.

    Raises TransientError NOT_WRITABLE when the lock is not had in time; StoreError NOT_WRITABLE, DAMAGED.
    """
    with _classified(engine), engine.connect() as connection, connection.execution_options(voxbook_write=True).begin():
        yield connection


def prepare(engine: Engine, tables: MetaData, meta: Table, schema: str) -> None:
    """Make the tables in an empty database, or check who made them. Raises StoreError SCHEMA."""
    with reading(engine) as connection:
        found = _schema(connection, meta)
    if found is None:
        with writing(engine) as connection:
            found = _schema(connection, meta)  # another process may have been first
            if found is None:
                tables.create_all(connection)
                connection.execute(meta.insert().values(key="schema", value=schema))
                found = schema
    if found != schema:
        raise StoreError("SCHEMA", f"schema {found} found, {schema} wanted")


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]], *, keep: tuple[str, ...] = ()) -> None:
    """INSERT … ON CONFLICT on the primary key: update every other column that the rows have, but those to keep."""
    if rows:
        connection.execute(upsert_of(connection.dialect.name, table, tuple(rows[0]), keep), rows)


def upsert_of(dialect: str, table: Table, columns: tuple[str, ...], keep: tuple[str, ...] = ()) -> Any:
    """The statement of `upsert`; without values, so that SQLAlchemy compiles it once for any number of rows."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_postgresql

        statement: Any = insert_postgresql(table)
    else:
        from sqlalchemy.dialects.sqlite import insert as insert_sqlite

        statement = insert_sqlite(table)
    left = {*(column.key for column in table.primary_key), *keep}
    changed = {
        column: statement.excluded[column.key]
        for column in table.columns
        if column.key in columns and column.key not in left
    }
    if not changed:
        return statement.on_conflict_do_nothing(index_elements=list(table.primary_key))
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)


def rewrite(engine: Engine) -> None:
    """Write a SQLite file anew, so that no page keeps bytes of erased rows; another writer at work only delays it.

    secure_delete clears what is deleted, but not the copies that balancing pages leaves in their gaps. Where the file
    stays locked, that is logged, and the next call does it.
    """
    if engine.dialect.name != "sqlite":
        return
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("VACUUM")
    except sqlite3.OperationalError:
        log.warning("a database is in use: traces of what was erased may stay in it until forget is called again")
    finally:
        raw.close()
    wipe_log(engine)


def wipe_log(engine: Engine) -> None:
    """Empty SQLite's write-ahead log, which keeps old pages until then; after something was erased for good.

    A reader in another process may keep the log's end alive; the next call, or closing, empties it.
    """
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            raw.close()


def _make_file(path: Path) -> None:
    if on_network(path.parent):
        raise ConfigError("NETWORK_FS")
    # Only where there is none: closing any descriptor of a file drops all POSIX locks of this process on it, also those
    # of SQLite connections that are open here, and another process would then take the log away from under them.
    if path.exists():
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreError("NOT_WRITABLE", "the database file cannot be opened")
        return
    try:
        # SQLite gives its -wal and -shm files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:  # another process was first
        return
    except OSError as error:
        raise StoreError("NOT_WRITABLE", "the database file cannot be opened", errno=error.errno) from error


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # pysqlite must not begin transactions of its own; `_begin` does
    deadline = time.monotonic() + BUSY_SECONDS
    while True:  # switching to WAL does not wait for other connections by itself
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA secure_delete=ON")  # what is forgotten leaves no bytes in free pages


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("voxbook_write", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
    elif write:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def _schema(connection: Connection, meta: Table) -> str | None:
    if not inspect(connection).has_table(meta.name):
        return None
    return connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one_or_none() or "none"


@contextmanager
def _classified(engine: Engine) -> Iterator[None]:
    """Database errors as ours; SQL text and parameters stay out of the message."""
    try:
        yield
    except (IntegrityError, ProgrammingError):  # defects of ours, not states of the database
        raise
    except DBAPIError as error:
        text = str(error.orig).lower()
        if "locked" in text or "busy" in text or "could not connect" in text or "connection" in text:
            raise TransientError("NOT_WRITABLE", "the database is busy or not reachable") from error
        if "malformed" in text or "not a database" in text:
            raise damaged(Path(engine.url.database or "").name) from error
        if "disk is full" in text or "no space left" in text:
            raise StoreError("NOT_WRITABLE", "the disk is full", errno=errno.ENOSPC) from error
        raise StoreError("NOT_WRITABLE", f"the database refused ({type(error.orig).__name__})") from error
