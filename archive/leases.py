"""Leases: two runs never work on one series at once, and what a dead run held is free again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from types import TracebackType

from sqlalchemy import Connection, delete, select, update

from archive.catalog import Catalog
from archive.catalog_engine import reading, upsert, writing
from archive.catalog_queries import parts, select_rows
from archive.catalog_schema import row_of
from archive.catalog_tables import leases, runs
from archive.commit import fault_point
from archive.errors import VoxbookError
from archive.owner import Owner

HEARTBEAT_SECONDS = 30.0
EXPIRY_SECONDS = 600.0
logger = logging.getLogger("voxbook")
# Runs of this process that ended while nothing could be written (a full disk), so that their leases are still there.
# Others must wait for this process to end; the next run in it need not. Each with its catalog's URL.
_ungiven: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Lease:
    """Who holds a resource. resource: `series:<pseudonym>`, `train:<group>`; heartbeat: Unix time of the last one."""

    resource: str
    run: str
    host: str
    boot_id: str
    pid: int
    process_started: str
    heartbeat: float

    @property
    def live(self) -> bool:
        """Whether its holder may still be at work: it lives on this host, or was heard of within ten minutes."""
        alive = self._owner().alive()
        return time.time() - self.heartbeat < EXPIRY_SECONDS if alive is None else alive

    @property
    def unseen(self) -> bool:
        """Whether its holder is of another host, so that nobody here can tell a dead one from one that stands still."""
        return self._owner().alive() is None

    def _owner(self) -> Owner:
        return Owner(self.host, self.boot_id, self.pid, self.process_started)


class Leases:
    """The leases of one run. As a context manager it keeps them fresh from a thread and gives them all back."""

    def __init__(self, catalog: Catalog, run: str) -> None:
        self.catalog = catalog
        self.run = run
        self.owner = Owner.me()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, resources: Iterable[str]) -> list[str]:
        """Take what nobody holds, in one transaction; returns what was granted, in the order asked for.

        Taken over at once: what a dead process of this host held (another boot included), and what a run held that
        has ended. Another host's after ten minutes without a heartbeat.
        """
        wanted = list(dict.fromkeys(resources))
        ended = {each for each in _ungiven if each[0] == str(self.catalog.engine.url)}
        with writing(self.catalog.engine) as connection:
            for part in parts(run for _, run in ended):
                connection.execute(delete(leases).where(leases.c.run.in_(part)))
            held = _held(connection, wanted)
            granted = [name for name in wanted if name not in held or held[name].run == self.run]
            upsert(connection, leases, [asdict(self._lease(name)) for name in granted])
            fault_point("leases.inside")
        _ungiven.difference_update(ended)
        fault_point("leases.taken")
        return granted

    def release(self, resources: Iterable[str]) -> None:
        """Give back; what this run does not hold is left alone."""
        with writing(self.catalog.engine) as connection:
            for part in parts(resources):
                connection.execute(delete(leases).where(leases.c.run == self.run, leases.c.resource.in_(part)))

    def beat(self) -> None:
        """Say that this run is still there."""
        with writing(self.catalog.engine) as connection:
            connection.execute(update(leases).where(leases.c.run == self.run).values(heartbeat=time.time()))

    def holders(self) -> list[Lease]:
        """Every lease of every run."""
        return holders(self.catalog)

    def __enter__(self) -> Leases:
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="voxbook-leases", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            with writing(self.catalog.engine) as connection:
                connection.execute(delete(leases).where(leases.c.run == self.run))
        except VoxbookError:
            _ungiven.add((str(self.catalog.engine.url), self.run))
            # They lapse by themselves once this process is gone; the error that ended the run must stay visible.
            if error is None:
                raise
            logger.warning(
                "run %s: its leases were not given back; they lapse by themselves, nothing is to be done", self.run
            )

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.beat()
            except VoxbookError as error:  # the next beat may work; ten minutes must pass before anybody takes over
                logger.warning(
                    "run %s: the catalog was not reached (%s) to say that this run lives; tried again in %.0f s",
                    self.run,
                    error.code,
                    HEARTBEAT_SECONDS,
                )

    def _lease(self, resource: str) -> Lease:
        me = self.owner
        return Lease(resource, self.run, me.host, me.boot_id, me.pid, me.started, time.time())


def holders(catalog: Catalog) -> list[Lease]:
    """Every lease of every run, dead ones too."""
    with reading(catalog.engine) as connection:
        return select_rows(connection, Lease, select(leases).order_by(leases.c.resource))


def _held(connection: Connection, wanted: list[str]) -> dict[str, Lease]:
    """What of the wanted is held by a run that has not ended and whose process may live."""
    found: dict[str, Lease] = {}
    for part in parts(wanted):
        query = select(leases, runs.c.ended_at).outerjoin(runs, runs.c.run == leases.c.run)
        for row in connection.execute(query.where(leases.c.resource.in_(part))).mappings():
            lease = row_of(Lease, row)
            if row["ended_at"] is None and lease.live:
                found[lease.resource] = lease
    return found
