"""A PostgreSQL cluster of the tests' own: in a temporary folder, on a free loopback port, as an unprivileged user."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine

USERS = ("postgres", "nobody")  # initdb refuses root


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parent.parent.name)
    on_path = shutil.which("initdb")
    best = found[-1] if found else Path(on_path).resolve() if on_path else None
    return best.parent if best and (best.parent / "pg_ctl").exists() else None


@contextmanager
def cluster() -> Iterator[str]:
    """A running cluster; gives the URL of its server, to which a database's name is added."""
    with tempfile.TemporaryDirectory(prefix="voxbook-postgres-", ignore_cleanup_errors=True) as folder:
        yield from _run(Path(folder))


def _run(folder: Path) -> Iterator[str]:
    binaries = programs()
    assert binaries is not None  # the caller has asked
    run = {"check": True, "capture_output": True, "timeout": 120, "cwd": "/"}
    if os.geteuid() == 0:
        user = next(name for name in USERS if _known(name))
        shutil.chown(folder, user)
        run |= {"user": user, "env": {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C"}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    subprocess.run([binaries / "initdb", "-D", data, "-U", "voxbook", "-A", "trust", "-E", "UTF8", "--no-sync"], **run)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    quiet = {**run, "capture_output": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg://voxbook@127.0.0.1:{port}/"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def create(server: str) -> str:
    """A new, empty database; its URL."""
    name = f"voxbook_{secrets.token_hex(4)}"
    engine = create_engine(f"{server}postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0")
    engine.dispose()
    return f"{server}{name}"


def _known(user: str) -> bool:
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False
